r"""Diffusion over a time, by any method: the door that models of graphs go through.

To an explicit method a diffusion is a right-hand side like another, see `integrate`. The others
know its coefficients: "exponential" solves a linear equation exactly, and elsewhere freezes them
for a step; "implicit" is stable however stiff they are.

Along the way what the field does can be measured, for use as a regulariser of that very field:
:math:`\int \lVert v \rVert^2 dt` and :math:`\int \lVert J^T \epsilon \rVert^2 dt`, whose mean over
`ε` is that of the squared Frobenius norm of the Jacobian.

Reference: How to train your neural ODE (Finlay et al., 2020), arXiv:2002.02798, eq. 8 and 11.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import ShapeError, SolverFailed, UsageError
from eqflow.flows.diffusion_steps import by_steps, coefficients_at, inputs_of
from eqflow.flows.effort import Effort
from eqflow.flows.evaluation import Stopped
from eqflow.flows.field_at import FieldAt, Pullback
from eqflow.flows.ode import integrate
from eqflow.flows.packing import Packing
from eqflow.flows.solver import DIFFUSION, Solver, State, Status
from eqflow.flows.trace import Velocity
from eqflow.flows.uniformization import propagate
from eqflow.nn.diffusion.operator import AbstractDiffusion, Coefficients
from eqflow.nn.field import AbstractField

Measure = Literal["kinetic", "jacobian"]
# Methods that solve a linear equation without steps.
EXACT = ("exponential", "exponential_euler")


@dataclass(frozen=True)
class Diffused:
    """What a diffusion came to.

    Attributes:
        states: At each time asked for, shape (T, N, C); None where the solve failed.
        measured: Integrals along the way of what was measured, by name, each of shape (B,).
        status: How it ended.
        time: Last time reached.
        evaluations: How often the field was evaluated, attention and all.
        products: How often all edges were gone through to apply the operator.
        at_fault: Graphs whose state or derivative was not finite, shape (K,), int64.
        detail: What else is known of a failure.
    """

    states: Tensor | None
    measured: dict[str, Tensor]
    status: Status
    time: float
    evaluations: int
    products: int
    at_fault: Tensor
    detail: str = ""

    def final(self) -> Tensor:
        """The state at the last time, shape (N, C).

        Raises:
            SolverFailed: If it was not reached.
        """
        return self.require()[-1]

    def require(self) -> Tensor:
        """The state at each time, shape (T, N, C).

        Raises:
            SolverFailed: If the last time was not reached.
        """
        if self.states is None:
            graphs = f"; graphs at fault: {self.at_fault.tolist()}" if len(self.at_fault) else ""
            detail = f" ({self.detail})" if self.detail else ""
            raise SolverFailed(
                f"diffusion stopped at t = {self.time:.4g} after {self.evaluations} evaluations "
                f"and {self.products} products: {self.status.value}{detail}{graphs}. Try a smaller "
                "model.time, more solver.steps or a larger solver.step_limit."
            )
        return self.states


def diffuse(
    field: AbstractField,
    x: Tensor,
    edges: Edges,
    time: float | Tensor,
    solver: Solver,
    context: Tensor | None = None,
    times: Sequence[float] | Tensor | None = None,
    *,
    measure: Collection[Measure] = (),
    source: torch.Generator | None = None,
) -> Diffused:
    """Let `x` diffuse from time 0 to `time`.

    A field that is linear is asked once for its coefficients, whatever the method.

    Args:
        field: The right-hand side.
        x: State at time 0, shape (N, C).
        edges: The graph, or several side by side.
        time: Positive. "exponential" on a linear field can be differentiated by it; further times
            then keep their place in proportion.
        solver: How. `solver.step_limit` bounds evaluations of the right-hand side; of
            "exponential" and "implicit" methods it bounds products.
        context: What the field is told beside its state; where None, and the field asks for as many
            channels as a state has, `x`.
        times: Times at which the state is wanted, rising from 0 to `time`; where None, these two.
            The state with the best accuracy on validation nodes is an early stop.
        measure: Integrals to take along, "kinetic" and "jacobian"; by the methods of `integrate`
            alone. They are sums over the nodes of each graph.
        source: Where the probe of "jacobian" comes from.

    Returns:
        A `Diffused`; a failure is a status, not an exception.

    Raises:
        ShapeError: If the state does not have one row a node.
        UsageError: If times do not rise from 0 to `time`, the method does not fit the field, or
            measuring does not fit the method.

    >>> from eqflow.nn.diffusion import GRAND
    >>> edges = Edges.from_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    >>> x = torch.ones(3, 8)
    >>> solved = diffuse(GRAND(8, heads=2), x, edges, 4.0, Solver("exponential"))
    >>> solved.status.name, tuple(solved.states.shape), solved.evaluations
    ('SUCCESS', (2, 3, 8), 1)
    """
    if x.dim() != 2 or len(x) != edges.nodes:
        raise ShapeError(
            f"diffuse: found a state {tuple(x.shape)}, expected (N, C) with N = {edges.nodes}."
        )
    places = _times(time, times)
    _require_fit(field, solver, places, measure, source)
    if context is None and field.context_features == x.shape[1]:
        context = x
    if solver.method not in DIFFUSION or not isinstance(field, AbstractDiffusion):
        return _by_integration(field, x, edges, places, solver, context, measure, source)
    effort = Effort(solver.step_limit, time=0.0)
    at_fault = torch.zeros(0, dtype=torch.int64, device=x.device)
    states: Tensor | None = None
    status, detail = Status.SUCCESS, ""
    try:
        at = coefficients_at(field, edges, context, effort)
        if solver.method in EXACT and field.is_linear:
            constant = at(0.0, x)
            states = propagate(constant, x, places, tolerance=solver.rtol, effort=effort).states
        else:
            states = by_steps(field, x, at, places.tolist(), solver, context, effort)
    except Stopped as stop:
        status, detail = stop.status, getattr(stop, "detail", "")
        effort.time = stop.time
        if stop.broken is not None:
            at_fault = Packing((x,), edges.clouds).clouds_at_fault(stop.broken.reshape(-1))
    return Diffused(
        states, {}, status, effort.time, effort.evaluations, effort.products, at_fault, detail
    )


def _times(time: float | Tensor, times: Sequence[float] | Tensor | None) -> Tensor:
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


def _require_fit(
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
    if places.requires_grad and not (solver.method in EXACT and _is_linear(field)):
        raise UsageError(
            f"diffuse: found a time that asks for a gradient with solver.method={solver.method} "
            f"on {name}, expected solver.method=exponential and a linear field."
        )


def _is_linear(field: AbstractField) -> TypeGuard[AbstractDiffusion]:
    return isinstance(field, AbstractDiffusion) and field.is_linear


def _by_integration(
    field: AbstractField,
    x: Tensor,
    edges: Edges,
    times: Tensor,
    solver: Solver,
    context: Tensor | None,
    measure: Collection[Measure],
    source: torch.Generator | None,
) -> Diffused:
    """By the ODE door, with what is measured as further parts of the state."""
    clouds = edges.clouds
    effort = Effort()
    inputs = inputs_of(field, context)
    constant: Coefficients | None = None
    if _is_linear(field):
        constant = coefficients_at(field, edges, context, effort)(0.0, x)
        parts = ("weight", "gain", "mixing", "damping", "source")
        inputs = tuple(p for p in (getattr(constant, part) for part in parts) if p is not None)
    probe = None
    if "jacobian" in measure and source is not None:
        probe = rng.rademacher(tuple(x.shape), x, source)

    def right_hand_side(t: Tensor, state: State) -> State:
        velocity: Velocity
        velocity = constant.velocity if constant is not None else FieldAt(field, t, edges, context)
        if probe is None:
            v = velocity(state[0])
            found = {"kinetic": v}
        else:
            pullback = Pullback(velocity, state[0])
            v = pullback.value
            found = {"kinetic": v, "jacobian": pullback(probe)}
        return v, *(clouds.sum(found[name].square().sum(1)) for name in measure)

    initial = (x, *(x.new_zeros(clouds.count) for _ in measure))
    solution = integrate(right_hand_side, initial, times.to(x), solver, clouds, inputs)
    states, measured = None, dict[str, Tensor]()
    if solution.states is not None:
        states, *integrals = solution.states
        measured = {name: part[-1] for name, part in zip(measure, integrals, strict=True)}
    return Diffused(
        states,
        measured,
        solution.status,
        solution.time,
        solution.evaluations if constant is None else effort.evaluations,
        solution.evaluations,
        solution.at_fault,
    )
