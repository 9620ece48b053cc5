"""Arguments of `diffuse`: each of its kind, and such as go together."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows.solver import DIFFUSION, Solver
from eqflow.nn.arguments import require_edges
from eqflow.nn.diffusion.operator import AbstractDiffusion
from eqflow.nn.field import AbstractField

Measure = Literal["kinetic", "jacobian"]
# Methods that solve a linear equation without steps.
EXACT = ("exponential", "exponential_euler")


def require_arguments(
    field: AbstractField, x: Tensor, edges: Edges, solver: Solver, context: Tensor | None
) -> None:
    """Refuse arguments of another kind than they are meant to be.

    Raises:
        ShapeError: That says how a tensor does not fit.
        UsageError: That says what else was expected.
    """
    require_edges("diffuse", edges)
    for name, value, kind, example in (
        ("field", field, AbstractField, "eqflow.nn.diffusion.GRAND(64)"),
        ("solver", solver, Solver, 'Solver("dopri5")'),
    ):
        if not isinstance(value, kind):
            raise UsageError(
                f"diffuse: found {name} of type {type(value).__name__}, expected "
                f"{kind.__name__}, such as {example}."
            )
    for name, tensor in (("state", x), ("context", context)):
        if tensor is not None and not (
            isinstance(tensor, Tensor)
            and tensor.dim() == 2
            and len(tensor) == edges.nodes
            and tensor.is_floating_point()
        ):
            found = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, Tensor) else ""
            raise ShapeError(
                f"diffuse: found a {name} {found or type(tensor).__name__}, expected (N, C) of "
                f"floating point with N = {edges.nodes}."
            )
    if context is not None and (context.dtype, context.device) != (x.dtype, x.device):
        raise ShapeError(
            f"diffuse: found a context of {context.dtype} on {context.device}, expected "
            f"{x.dtype} on {x.device}, as the state. Pass context.to(x)."
        )


def times_of(time: float | Tensor, times: Sequence[float] | Tensor | None) -> Tensor:
    """The times, in float64: in float32 they may come to lie in another order."""
    end = torch.as_tensor(time, dtype=torch.float64, device="cpu")
    length = float(end.detach())
    if not 0 < length < math.inf:
        raise UsageError(f"diffuse: found time {length}, expected a finite number above 0.")
    if times is None:
        return torch.stack([torch.zeros_like(end), end])
    places = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
    fits = places.dim() == 1 and len(places) > 1 and bool((places.diff() > 0).all())
    if not fits or places[0] != 0 or abs(float(places[-1]) - length) > 1e-6 * length:
        raise UsageError(
            f"diffuse: found times {places.tolist()}, expected them to rise from 0 to {length}."
        )
    return places / float(places[-1]) * end


def require_fit(
    field: AbstractField,
    solver: Solver,
    places: Tensor,
    measure: Collection[Measure],
    source: torch.Generator | None,
) -> None:
    """Refuse what cannot be done together.

    Raises:
        UsageError: That says what.
    """
    name = type(field).__name__
    if isinstance(measure, str):
        raise UsageError(
            f"diffuse: found measure={measure!r}, expected a collection of names, such as "
            f"measure=[{measure!r}]."
        )
    unknown = set(measure) - set(get_args(Measure))
    if unknown:
        raise UsageError(
            f"diffuse: found {sorted(unknown)} to measure, expected {', '.join(get_args(Measure))}."
        )
    if "jacobian" in measure and source is None:
        raise UsageError("diffuse: the Jacobian is measured by a probe; pass source=rng.generator.")
    if solver.method in DIFFUSION:
        if measure:
            raise UsageError(
                f"diffuse: found {', '.join(measure)} to measure with solver.method="
                f"{solver.method}, expected an explicit method, such as dopri5."
            )
        if not isinstance(field, AbstractDiffusion):
            raise UsageError(
                f"solver.method: found {solver.method!r} for {name}, which is no diffusion with "
                "coefficients. Take an explicit method, such as dopri5."
            )
        if not field.moves_by_coefficients:
            raise UsageError(
                f"solver.method: found {solver.method!r} for a nonlinear {name}, whose velocity is "
                "not that of its coefficients. Take an explicit method, such as dopri5."
            )
    if places.requires_grad and not (solver.method in EXACT and is_linear(field)):
        raise UsageError(
            f"diffuse: found a time that asks for a gradient with solver.method={solver.method} "
            f"on {name}, expected solver.method=exponential and a linear field."
        )


def is_linear(field: AbstractField) -> TypeGuard[AbstractDiffusion]:
    """Whether a field is a diffusion whose coefficients depend on neither time nor state."""
    return isinstance(field, AbstractDiffusion) and field.is_linear
