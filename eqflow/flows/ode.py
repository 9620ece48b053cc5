"""The ODE door: what every integration goes through, and the only caller of torchdiffeq.

It counts evaluations and limits them, sees to it that states are finite, controls the error of each
cloud and not only the batch's mean, and returns a `Solution` whose status says how it ended. Only
the outermost layer turns a status into an exception. The steps are eqflow's own, which cost less
around each evaluation, or torchdiffeq's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from eqflow.errors import ShapeError, UsageError
from eqflow.flows.captured import integrate_captured
from eqflow.flows.dormand_prince import DormandPrince
from eqflow.flows.evaluation import Evaluator, Stopped
from eqflow.flows.field_at import jacobian_of
from eqflow.flows.packing import Packing
from eqflow.flows.radau import integrate_radau
from eqflow.flows.recompute import recomputed
from eqflow.flows.solver import (
    ADAPTIVE,
    DIFFUSION,
    FIXED,
    STIFF,
    RightHandSide,
    Solution,
    Solver,
    State,
    Status,
)
from eqflow.flows.steppers import equal_steps, integrate_fixed
from eqflow.geometry import Segments

__all__ = [
    "ADAPTIVE",
    "FIXED",
    "STIFF",
    "RightHandSide",
    "Solution",
    "Solver",
    "State",
    "Status",
    "integrate",
]

# Where torchdiffeq has another name for a method.
TORCHDIFFEQ_NAMES = {"heun": "heun2"}


def integrate(
    right_hand_side: RightHandSide,
    initial: State,
    times: Tensor,
    solver: Solver,
    clouds: Segments | None = None,
    parameters: Iterable[Tensor] = (),
    jacobian: Callable[[Tensor, State], Tensor] | None = None,
) -> Solution:
    """Integrate `d state / dt = right_hand_side(t, state)` through `times`.

    Args:
        right_hand_side: Takes a scalar time and a state; returns a derivative of the same shapes.
        initial: State at `times[0]`: first a tensor of node rows (N, …), then any number of tensors
            with one row a cloud (B, …).
        times: Rising or falling, shape (T,), at least two; constants to the derivative.
        solver: How.
        clouds: Which node rows belong to which cloud; one cloud where None.
        parameters: What the gradients "adjoint" and "checkpoint" differentiate by besides the
            initial state: parameters, and other tensors that the right-hand side uses.
        jacobian: Of the rows' derivative by the rows, flat, shape (N w, N w), at a time and a
            state; for implicit methods, which find it by reverse mode where None.

    Returns:
        A `Solution`; a failure is a status, not an exception. Only where the adjoint equation
        fails, during `backward`, is `SolverFailed` raised.

    Raises:
        UsageError: If the times neither rise nor fall throughout, the method is one of diffusions
            alone, or it gives no gradients and they are enabled.
        ShapeError: If the right-hand side returns other shapes than those of the state.
    """
    if solver.method in DIFFUSION:
        raise UsageError(
            f"solver.method: found {solver.method!r} for a right-hand side that is no diffusion on "
            f"a graph, expected one of {', '.join(ADAPTIVE + STIFF + FIXED)}."
        )
    if solver.method in STIFF and torch.is_grad_enabled():
        raise UsageError(
            f"solver.method: found {solver.method!r}, which gives no gradients, where they are "
            f"enabled; expected one of {', '.join(ADAPTIVE + FIXED)}, or a call within "
            "torch.no_grad()."
        )
    times = times.detach()
    steps = times.diff()
    if times.dim() != 1 or len(steps) < 1 or not ((steps > 0).all() or (steps < 0).all()):
        raise UsageError(
            f"integrate: found times {times.tolist()}, expected two or more, "
            "all rising or all falling."
        )
    if clouds is None:
        rows = initial[0].shape[0]
        clouds = Segments(torch.tensor([0, rows], device=initial[0].device))
    if not torch.is_grad_enabled():
        solver = replace(solver, gradient="direct")
    packing = Packing(initial, clouds)
    shapes = [part.shape for part in initial]
    y = packing.pack(initial)
    differentiated = tuple(parameters)

    def field(t: Tensor, packed: Tensor) -> Tensor:
        derivative = right_hand_side(t, packing.unpack(packed))
        _require_shapes(derivative, shapes)
        return packing.pack(derivative)

    def rows_of(t: Tensor, state: State) -> Tensor:
        rows, *others = state
        return jacobian_of(lambda x: right_hand_side(t, (x, *others))[0], rows)

    deferred = y.is_cuda and _is_own(solver)
    kept = recomputed(field, differentiated) if solver.gradient == "checkpoint" else field
    evaluate = Evaluator(kept, solver.step_limit, deferred)
    states: State | None = None
    status, at_fault = Status.SUCCESS, torch.zeros(0, dtype=torch.int64, device=clouds.ptr.device)
    try:
        if solver.method in STIFF:
            path = _solve_implicitly(evaluate, y, times, solver, packing, jacobian or rows_of)
        else:
            path = _solve(evaluate, y, times, solver, packing, differentiated)
        # Nothing less itself is zero, but for what is not finite.
        evaluate.settle((path - path).detach().sum(0))
        states = packing.unpack(path)
    except Stopped as stop:
        status = stop.status
        if stop.broken is not None:
            at_fault = packing.clouds_at_fault(stop.broken)
    return Solution(states, status, evaluate.time, evaluate.evaluations, at_fault)


def _solve(
    evaluate: Evaluator,
    y: Tensor,
    times: Tensor,
    solver: Solver,
    packing: Packing,
    parameters: tuple[Tensor, ...],
) -> Tensor:
    """The packed state at each time, shape (T, M)."""
    if _is_own(solver):
        if solver.is_adaptive:
            method = DormandPrince(evaluate, packing.norm, solver.rtol, solver.atol)
            return torch.stack(method.integrate(y, times.tolist()))
        by_steps = integrate_fixed
        if solver.capture and not torch.is_grad_enabled():
            by_steps = integrate_captured
        return torch.stack(by_steps(evaluate, solver.method, y, times.tolist(), solver.steps))
    options, backward = _torchdiffeq_options(times, solver, packing)
    tolerance = {
        "rtol": solver.rtol,
        "atol": solver.atol,
        "method": TORCHDIFFEQ_NAMES.get(solver.method, solver.method),
    }
    if solver.gradient == "adjoint":
        return odeint_adjoint(
            evaluate,
            y,
            times,
            **tolerance,
            options=options,
            adjoint_options=backward,
            adjoint_params=tuple(p for p in parameters if p.requires_grad),
        )
    return odeint(evaluate, y, times, **tolerance, options=options)


def _solve_implicitly(
    evaluate: Evaluator,
    y: Tensor,
    times: Tensor,
    solver: Solver,
    packing: Packing,
    jacobian: Callable[[Tensor, State], Tensor],
) -> Tensor:
    """The packed state at each time, shape (T, M), without derivatives."""
    states = integrate_radau(
        evaluate,
        y,
        times.tolist(),
        solver.rtol,
        solver.atol,
        solver.steps,
        lambda t, packed: jacobian(t, packing.unpack(packed)),
    )
    return torch.stack(states)


def _require_shapes(derivative: Any, expected: list[torch.Size]) -> None:
    """Refuse what packing would take for a derivative, as one broadcast or transposed."""
    is_state = isinstance(derivative, (tuple, list))
    if is_state and [getattr(part, "shape", None) for part in derivative] == expected:
        return
    if is_state:
        found = ", ".join(
            str(tuple(p.shape)) if isinstance(p, Tensor) else repr(p) for p in derivative
        )
        found = f"({found})"
    else:
        found = "a single tensor" if isinstance(derivative, Tensor) else repr(derivative)
    raise ShapeError(
        f"integrate: the right-hand side returned {found}, expected a tuple of tensors of the "
        f"state's shapes: {', '.join(str(tuple(shape)) for shape in expected)}."
    )


def _is_own(solver: Solver) -> bool:
    return (
        solver.implementation == "eqflow"
        and solver.gradient != "adjoint"
        and solver.method not in ("adaptive_heun", *STIFF)
    )


def _torchdiffeq_options(
    times: Tensor, solver: Solver, packing: Packing
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the equation and of its adjoint."""
    if solver.is_adaptive:
        # Without step_t an adaptive solver steps past the last time, where the field may not exist.
        options: dict[str, Any] = {"norm": packing.norm, "step_t": times[-1:]}
        return options, {"norm": "seminorm", "step_t": times[:1]}
    size = float((times[-1] - times[0]).abs()) / solver.steps

    def grid(_field: object, _state: object, through: Tensor) -> Tensor:
        asked = through.tolist()
        places = [equal_steps(start, end, size)[:-1] for start, end in pairwise(asked)]
        return through.new_tensor([*chain.from_iterable(places), asked[-1]])

    return {"grid_constructor": grid}, {"grid_constructor": grid}
