r"""The continuous normalizing flow on packed states, in standardised units.

Time runs from data at `t = 0` to the base density at `t = 1`:
:math:`\log p(x) = \log p_Z(z) + \int_0^1 \mathrm{tr} \tfrac{\partial v}{\partial x} \, dt` along
:math:`\dot x = v(t, x)`, `x(0) = x`, `x(1) = z`. Sampling integrates backwards from `z`.

Reference: Neural Ordinary Differential Equations (Chen et al., 2018), arXiv:1806.07366, theorem 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqflow.errors import ShapeError, UsageError
from eqflow.flows.base import CenteredNormal
from eqflow.flows.field_at import FieldAt, jacobian_of
from eqflow.flows.ode import STIFF, Solution, Solver, State, Status, integrate
from eqflow.flows.results import Integrated
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Segments
from eqflow.nn.field import AbstractField

DATA, LATENT = 0.0, 1.0
# In float16 the constant that keeps the distance of coincident points differentiable is zero.
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Transport(Integrated):
    """Where a batch was carried, and what it cost.

    Attributes:
        x: Final state, shape (N, d + K); NaN in the rows of clouds that failed.
        log_det: Estimates of the integral of the trace along the way travelled, shape (B, K);
            K = 0 where no divergence was asked for.
        path: Integrals of `‖v‖²` and `‖∂v/∂x‖²`, shape (B, 2); (B, 0) where not asked for.
    """

    x: Tensor
    log_det: Tensor
    path: Tensor

    @property
    def succeeded(self) -> Tensor:
        """Which clouds arrived, shape (B,), bool."""
        return torch.tensor([status is Status.SUCCESS for status in self.status])


class ContinuousFlow(nn.Module):
    """A density on centred positions and the features beside them, given by a velocity field.

    Args:
        field: The velocity.
    """

    def __init__(self, field: AbstractField) -> None:
        super().__init__()
        self.field = field
        self.base = CenteredNormal(field.state_features)

    def velocity(
        self, t: Tensor, x: Tensor, clouds: Segments, context: Tensor | None = None
    ) -> Tensor:
        """The field at `x`, shape (N, d + K), on the graph it connects there.

        Raises:
            ShapeError: If positions or weights are of a dtype that flows do not have.
        """
        return self.velocity_and_logits(t, x, clouds, context)[0]

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, clouds: Segments, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`velocity`, and what the field takes the categories for where it predicts them.

        Raises:
            ShapeError: If positions or weights are of a dtype that flows do not have.
        """
        self._require_precision(x, "velocity")
        return self.field.velocity_and_logits(t, x, self.field.connect(x, clouds), context)

    def dynamics(
        self, clouds: Segments, context: Tensor | None = None
    ) -> Callable[[Tensor, Tensor], FieldAt]:
        """`(t, x) ↦ (x ↦ v)`: the field with its graph fixed at `x`, so as to be differentiated."""
        fixed = None if self.field.cutoff else self.field.connect(torch.empty(0), clouds)

        def at(t: Tensor, x: Tensor) -> FieldAt:
            edges = self.field.connect(x.detach(), clouds) if fixed is None else fixed
            return FieldAt(self.field, t, edges, context)

        return at

    def transport(
        self,
        x: Tensor,
        ptr: Tensor | Segments,
        context: Tensor | None = None,
        *,
        start: float,
        end: float,
        solver: Solver,
        divergence: AbstractDivergence | None = None,
        source: torch.Generator | None = None,
        probes: Tensor | None = None,
        measure_path: bool = False,
    ) -> Transport:
        """Carry each cloud from time `start` to time `end`, a failing cloud not harming the others.

        Clouds whose derivative is not finite are taken out and the rest solved again; a failure
        that belongs to no cloud in particular halves the batch. By an implicit method, which
        solves for all it carries at once, each cloud goes alone. What other solvers make of clouds
        that failed is asked for in `eqflow.flows.fallback`.

        Args:
            x: State with centred positions, shape (N, d + K).
            ptr: Start of each cloud.
            context: Fixed node features, shape (N, C).
            start, end: Times; data is at 0, the base density at 1.
            solver: How to integrate.
            divergence: How to get the trace; none is integrated where None.
            source: Where probes come from; needed by estimators.
            probes: Probes drawn already, shape (S, N, d + K), see `probes`; in place of a source.
            measure_path: Integrate kinetic energy and Jacobian norm as well; needs a divergence
                that estimates the norm.

        Raises:
            ShapeError: If positions or weights are of a dtype that flows do not have.
            UsageError: If the divergence needs a source, or cannot measure the path.
        """
        self._require_precision(x, "transport")
        clouds = Segments.of(ptr)
        if probes is None:
            probes = self.probes(x, clouds, divergence, source)
        columns = 0 if divergence is None else divergence.estimates()
        times = torch.tensor([start, end], dtype=x.dtype, device=x.device)

        final = torch.full_like(x, float("nan"))
        log_det = x.new_full((clouds.count, columns), float("nan"))
        path = x.new_full((clouds.count, 2 * measure_path), float("nan"))
        evaluations = torch.zeros(clouds.count, dtype=torch.int64)
        status = [Status.SUCCESS] * clouds.count
        time = torch.full((clouds.count,), end, dtype=torch.float64)

        together = 1 if solver.method in STIFF else max(clouds.count, 1)
        waiting = list(torch.arange(clouds.count, device=x.device).split(together)[::-1])
        waiting = waiting if clouds.count else []
        while waiting:
            chosen = waiting.pop()
            some, rows = clouds.select(chosen)
            whole = len(chosen) == clouds.count
            given = context if whole or context is None else context[rows]
            right_hand_side = self._augmented(
                some,
                given,
                divergence,
                probes if whole else probes[:, rows],
                measure_path,
            )
            initial: State = (
                x if whole else x[rows],
                x.new_zeros(some.count, columns),
                x.new_zeros(some.count, path.shape[1]),
            )
            solution = integrate(
                right_hand_side,
                initial,
                times,
                solver,
                some,
                self.field.parameters(),
                self._jacobian(some, given),
            )
            evaluations[chosen.cpu()] += solution.evaluations
            if solution.status is Status.SUCCESS:
                if whole:
                    final, log_det, path = solution.final()
                else:
                    arrived, gained, travelled = solution.final()
                    final = final.index_put((rows,), arrived)
                    log_det = log_det.index_put((chosen,), gained)
                    path = path.index_put((chosen,), travelled)
                continue
            lost, retry = _isolate(chosen, solution)
            for cloud in lost.tolist():
                status[cloud] = solution.status
                time[cloud] = solution.time
            waiting.extend(retry)
        return Transport(
            final,
            log_det,
            path,
            evaluations=evaluations,
            status=tuple(status),
            time=time,
            solver=("",) * clouds.count,
            solver_error=torch.full((clouds.count,), float("nan"), dtype=torch.float64),
        )

    def probes(
        self,
        x: Tensor,
        clouds: Segments,
        divergence: AbstractDivergence | None,
        source: torch.Generator | None,
    ) -> Tensor:
        """What a divergence draws once for a solve from states `x`, shape (S, N, d + K).

        Raises:
            UsageError: If the divergence needs a source.
        """
        return _draw(divergence, x, clouds, source, self.field.state_features)

    def trajectory(
        self,
        x: Tensor,
        ptr: Tensor | Segments,
        times: Tensor,
        context: Tensor | None = None,
        *,
        solver: Solver,
    ) -> Solution:
        """The state at each of `times`, (T, N, d + K) as the first of `Solution.states`.

        Raises:
            ShapeError: If positions or weights are of a dtype that flows do not have.
        """
        self._require_precision(x, "trajectory")
        clouds = Segments.of(ptr)
        at = self.dynamics(clouds, context)
        return integrate(lambda t, state: (at(t, state[0])(state[0]),), (x,), times, solver, clouds)

    def _require_precision(self, x: Tensor, where: str) -> None:
        weights = next(self.parameters(), x)
        for what, dtype in (("positions", x.dtype), ("weights", weights.dtype)):
            if dtype not in PRECISIONS:
                raise ShapeError(
                    f"{where}: found {what} of {dtype}, expected torch.float32, torch.float64 or "
                    "torch.bfloat16. Call flow.float() and pass positions of float32."
                )

    def _jacobian(
        self, clouds: Segments, context: Tensor | None
    ) -> Callable[[Tensor, State], Tensor]:
        """`∂v/∂x` of all rows of a state, for implicit methods."""

        def jacobian(t: Tensor, state: State) -> Tensor:
            return jacobian_of(self.dynamics(clouds, context)(t, state[0]), state[0])

        return jacobian

    def _augmented(
        self,
        clouds: Segments,
        context: Tensor | None,
        divergence: AbstractDivergence | None,
        probes: Tensor,
        measure_path: bool,
    ) -> Callable[[Tensor, State], State]:
        """The right-hand side of state, trace integral and path integrals together."""
        at = self.dynamics(clouds, context)

        def right_hand_side(t: Tensor, state: State) -> State:
            x, log_det, path = state
            if divergence is None:
                return at(t, x)(x), torch.zeros_like(log_det), torch.zeros_like(path)
            trace = divergence(at(t, x), x, clouds, probes)
            if not measure_path:
                return trace.velocity, trace.estimates, torch.zeros_like(path)
            if trace.jacobian is None:
                raise UsageError(
                    f"transport: {type(divergence).__name__} does not estimate the norm of the "
                    "Jacobian; measure the path with Hutchinson."
                )
            kinetic = clouds.sum(trace.velocity.square().sum(-1))
            return trace.velocity, trace.estimates, torch.stack([kinetic, trace.jacobian], 1)

        return right_hand_side


def _draw(
    divergence: AbstractDivergence | None,
    x: Tensor,
    clouds: Segments,
    source: torch.Generator | None,
    features: int,
) -> Tensor:
    if divergence is None:
        return x.new_zeros(0, *x.shape)
    if source is None:
        source = torch.Generator(device=x.device)
        probes = divergence.probes(x, clouds, source, features)
        if len(probes):
            raise UsageError(
                "transport: this divergence draws probes; pass source=rng.generator(…)."
            )
        return probes
    return divergence.probes(x, clouds, source, features)


def _isolate(chosen: Tensor, solution: Solution) -> tuple[Tensor, list[Tensor]]:
    """Clouds to give up, and groups to try again."""
    if len(solution.at_fault):
        kept = torch.ones(len(chosen), dtype=torch.bool, device=chosen.device)
        kept[solution.at_fault] = False
        return chosen[~kept], [chosen[kept]] if kept.any() else []
    if len(chosen) == 1:
        return chosen, []
    middle = len(chosen) // 2
    return chosen[:0], [chosen[middle:], chosen[:middle]]
