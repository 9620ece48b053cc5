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

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import SolverFailed
from eqflow.flows.diffusion_arguments import (
    EXACT,
    Measure,
    is_linear,
    require_arguments,
    require_fit,
    times_of,
)
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


@dataclass(frozen=True)
class Diffused:
    """What a diffusion came to.

    Attributes:
        states: At each time asked for, shape (T, N, C); NaN in graphs at fault, where the others
            came to the end without them, and None where no graph did.
        measured: Integrals along the way of what was measured, by name, each of shape (B,); NaN
            of graphs at fault.
        status: How it ended.
        time: Last time reached.
        evaluations: How often the field was evaluated, attention and all.
        products: How often all edges were gone through to apply the operator.
        at_fault: Graphs whose state or derivative was not finite, shape (K,), int64.
        detail: What else is known of a failure.
        reason: What a failure was, where the status does not say it well.
    """

    states: Tensor | None
    measured: dict[str, Tensor]
    status: Status
    time: float
    evaluations: int
    products: int
    at_fault: Tensor
    detail: str = ""
    reason: str = ""

    def final(self) -> Tensor:
        """The state at the last time, shape (N, C).

        Raises:
            SolverFailed: If it was not reached.
        """
        return self.require()[-1]

    def require(self) -> Tensor:
        """The state at each time, shape (T, N, C).

        Raises:
            SolverFailed: If the last time was not reached, by one graph or more.
        """
        if self.states is None or self.status.failed:
            graphs = f"; graphs at fault: {self.at_fault.tolist()}" if len(self.at_fault) else ""
            detail = f" ({self.detail})" if self.detail else ""
            reason = f"{self.reason or self.status.value}{detail}"
            raise SolverFailed(
                f"diffusion stopped at t = {self.time:.4g} after {self.evaluations} evaluations "
                f"and {self.products} products: {reason}{graphs}. "
                "Try a smaller model.time, more solver.steps or a larger solver.step_limit."
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
        ShapeError: If the state does not have one row a node, or is of another type than a context.
        UsageError: If an argument is of another kind, times do not rise from 0 to `time`, the
            method does not fit the field, or measuring does not fit the method.

    Time and steps are those of the whole batch. A graph that ends the solve as its state is not
    finite is left out, and the solve begun again for the others.

    >>> from eqflow.nn.diffusion import GRAND
    >>> edges = Edges.from_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    >>> x = torch.ones(3, 8)
    >>> solved = diffuse(GRAND(8, heads=2), x, edges, 4.0, Solver("exponential"))
    >>> solved.status.name, tuple(solved.states.shape), solved.evaluations
    ('SUCCESS', (2, 3, 8), 1)
    """
    require_arguments(field, x, edges, solver, context)
    places = times_of(time, times)
    require_fit(field, solver, places, measure, source)
    if context is None and field.context_features == x.shape[1]:
        context = x

    def of(x: Tensor, edges: Edges, context: Tensor | None) -> Diffused:
        if solver.method in DIFFUSION and isinstance(field, AbstractDiffusion):
            return _by_coefficients(field, x, edges, places, solver, context)
        return _by_integration(field, x, edges, places, solver, context, measure, source)

    return _graph_by_graph(of, x, edges, context)


def _graph_by_graph(
    solve: Callable[[Tensor, Edges, Tensor | None], Diffused],
    x: Tensor,
    edges: Edges,
    context: Tensor | None,
) -> Diffused:
    """What `solve` comes to; again without graphs that are not finite, for those that are."""
    found, count = solve(x, edges, context), edges.clouds.count
    if found.status.failed and 0 < len(found.at_fault) < count:
        is_kept = torch.ones(count, dtype=torch.bool, device=x.device)
        is_kept[found.at_fault] = False
        kept = is_kept.nonzero().squeeze(1)
        others, rows = _some_graphs(edges, kept)
        inside = None if context is None else context[rows]
        rest = _graph_by_graph(solve, x[rows], others, inside)
        if rest.states is not None:
            at_fault = torch.cat([found.at_fault, kept[rest.at_fault]]).sort().values
            return replace(
                found,
                states=_among(rest.states, rows, len(x), 1),
                measured={
                    name: _among(part, kept, count, 0) for name, part in rest.measured.items()
                },
                evaluations=found.evaluations + rest.evaluations,
                products=found.products + rest.products,
                at_fault=at_fault,
            )
    return found


def _some_graphs(edges: Edges, kept: Tensor) -> tuple[Edges, Tensor]:
    """Some graphs of a batch, and which nodes are theirs."""
    clouds, rows = edges.clouds.select(kept)
    place = torch.full((edges.nodes,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    pairs = place[torch.stack([edges.sender, edges.receiver])]
    return Edges.from_index(pairs[:, pairs[0] >= 0], len(rows), clouds), rows


def _among(values: Tensor, places: Tensor, count: int, dimension: int) -> Tensor:
    """Values at their places among as many NaN as there are others."""
    shape = list(values.shape)
    shape[dimension] = count
    return values.new_full(shape, float("nan")).index_copy(dimension, places, values)


def _by_coefficients(
    field: AbstractDiffusion,
    x: Tensor,
    edges: Edges,
    places: Tensor,
    solver: Solver,
    context: Tensor | None,
) -> Diffused:
    """By a method that knows the coefficients of a diffusion."""
    effort = Effort(solver.step_limit, time=0.0)
    at_fault = torch.zeros(0, dtype=torch.int64, device=x.device)
    states: Tensor | None = None
    status, detail, reason = Status.SUCCESS, "", ""
    try:
        at = coefficients_at(field, edges, context, effort)
        if solver.method in EXACT and field.is_linear:
            constant = at(0.0, x)
            states = propagate(constant, x, places, tolerance=solver.rtol, effort=effort).states
        else:
            states = by_steps(field, x, at, places.tolist(), solver, context, effort)
    except Stopped as stop:
        status, detail = stop.status, getattr(stop, "detail", "")
        reason = getattr(stop, "reason", "")
        effort.time = stop.time
        if stop.broken is not None:
            at_fault = Packing((x,), edges.clouds).clouds_at_fault(stop.broken.reshape(-1))
    counts = effort.time, effort.evaluations, effort.products
    return Diffused(states, {}, status, *counts, at_fault, detail, reason)


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
    if is_linear(field):
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
