r"""Divergence of a velocity field on packed clouds: exact, Hutchinson, Hutch++.

Fields here are centred and translation invariant, so the trace of the Jacobian on the zero-mean
subspace is the trace over all coordinates; estimators project their probes onto the subspace, which
removes the variance of the null directions.

One interface: `probes` draws what stays fixed during a solve, and calling the object gives velocity
and trace. An estimator with `K` probes returns `K` independent estimates a cloud, in columns: their
mean is the estimate, their spread its standard error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.geometry import Segments, centred
from eqflow.nn.field import AbstractField

Velocity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FieldAt:
    """A field at one time on one graph, as a function of the state alone.

    Attributes:
        field: The velocity field.
        t: Time, a scalar.
        edges: The graph.
        context: Fixed node features, shape (N, C), or None.
    """

    field: AbstractField
    t: Tensor
    edges: Edges
    context: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The velocity at `x`, shape (N, d)."""
        velocity: Tensor = self.field(self.t.to(x.dtype), x, self.edges, self.context)
        return velocity

    def pushforward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and its derivative along `direction`, all of shape (N, d)."""
        value, tangent = self.field.pushforward(
            self.t.to(x.dtype), Dual(x, direction.unsqueeze(1)), self.edges, self.context
        )
        return value, tangent.squeeze(1)

    def exact_trace(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Velocity and divergence by the field's own way, where it has one."""
        if not self.field.traces_itself:
            return None
        return self.field.exact_trace(self.t.to(x.dtype), x, self.edges, self.context)


class Trace(NamedTuple):
    """Velocity and divergence at one state.

    Attributes:
        velocity: Shape (N, d).
        estimates: Independent estimates of `tr J`, shape (B, K).
        jacobian: Estimate of the squared Frobenius norm of `J`, shape (B,), where the method has
            one.
    """

    velocity: Tensor
    estimates: Tensor
    jacobian: Tensor | None = None


class AbstractDivergence(ABC):
    """One way to get `tr ∂v/∂x` for each cloud of a batch.

    Attributes:
        is_exact: Whether the trace has no estimation error.
    """

    is_exact: bool = False

    def probes(self, x: Tensor, clouds: Segments, source: torch.Generator) -> Tensor:
        """What is drawn once per solve, shape (S, N, d); S = 0 where nothing is."""
        return x.new_zeros(0, *x.shape)

    def estimates(self) -> int:
        """Number K of independent estimates."""
        return 1

    @abstractmethod
    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace at `x`, shape (N, d).

        Differentiable by parameters and `x` where gradients are enabled.
        """


class Exact(AbstractDivergence):
    r"""The trace by reverse mode, one direction after another through one graph.

    By translation invariance `J e_n = −Σ_{i<n} J e_i`, so the last point of each cloud needs no
    direction: :math:`\mathrm{tr} J = \sum_{i < n} \sum_a (e_{ia} - e_{na})^\top J e_{ia}`.
    Every cloud of a batch shares the pass. `benchmarks/divergence.py`
    compares the routes.
    """

    is_exact = True

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace, one reverse pass a direction.

        A field with a way of its own is asked first, where nothing is to be differentiated.
        """
        if isinstance(velocity, FieldAt) and not torch.is_grad_enabled():
            own = velocity.exact_trace(x)
            if own is not None:
                return Trace(own[0], own[1].unsqueeze(1))
        pullback = _Pullback(velocity, x)
        trace = x.new_zeros(clouds.count)
        for direction in range(max(clouds.longest - 1, 0) * x.shape[1]):
            point, axis = divmod(direction, x.shape[1])
            covector, rows, cloud = _difference_from_last(x, clouds, point, axis)
            column = pullback(covector)[rows, axis]
            trace = trace.index_put((cloud,), column, accumulate=True)
        return Trace(pullback.value, trace.unsqueeze(1))


class ExactForward(AbstractDivergence):
    """The trace by batched forward mode: directions are mapped over `torch.func.jvp`.

    Args:
        chunk: Directions carried at once, which bounds the memory.
    """

    is_exact = True

    def __init__(self, chunk: int = 8) -> None:
        if chunk < 1:
            raise UsageError(f"divergence.chunk: found {chunk}, expected at least 1.")
        self.chunk = chunk

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace, several directions a pass."""
        count = max(clouds.longest - 1, 0) * x.shape[1]
        value = velocity(x)
        if count == 0:
            return Trace(value, value.new_zeros(clouds.count, 1))
        place = clouds.place.unsqueeze(1) * x.shape[1] + torch.arange(x.shape[1], device=x.device)
        direction = torch.arange(count, device=x.device).reshape(-1, 1, 1)
        last = clouds.expand(clouds.lengths - 1).unsqueeze(1) * x.shape[1]
        here = (place == direction) & (place < last)
        tangents = here.to(x.dtype)

        def column(tangent: Tensor) -> Tensor:
            pushed: Tensor = torch.func.jvp(velocity, (x,), (tangent,))[1]
            # e_ia − e_na, of which J carries the first.
            final = clouds.expand(clouds.sum(tangent)) * (place >= last)
            return clouds.sum((pushed * (tangent - final)).sum(-1))

        columns = torch.func.vmap(column, chunk_size=self.chunk)(tangents)
        return Trace(value, columns.sum(0).unsqueeze(1))


class Hutchinson(AbstractDivergence):
    r"""Hutchinson's estimator, `tr J ≈ εᵀ J ε`, with `ε` projected onto the zero-mean subspace.

    Args:
        probes: Number of probes, each an independent estimate.
        distribution: "rademacher" (entries ±1) has the smaller variance; "gaussian" is the
            published flow's on molecules.

    Reference: FFJORD (Grathwohl et al., 2019), arXiv:1810.01367, section 3.1.
    """

    def __init__(
        self, probes: int = 1, distribution: Literal["rademacher", "gaussian"] = "rademacher"
    ) -> None:
        _require_probes(probes)
        if distribution not in ("rademacher", "gaussian"):
            raise UsageError(
                f"divergence.distribution: found {distribution!r}, "
                "expected 'rademacher' or 'gaussian'."
            )
        self.count = probes
        self.distribution = distribution

    def probes(self, x: Tensor, clouds: Segments, source: torch.Generator) -> Tensor:
        """Projected probes, shape (probes, N, d)."""
        draw = rng.rademacher if self.distribution == "rademacher" else rng.normal
        shape = tuple(x.shape)
        return torch.stack([centred(draw(shape, x, source), clouds) for _ in range(self.count)])

    def estimates(self) -> int:
        """One a probe."""
        return self.count

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity, an estimate a probe, and the Jacobian's norm.

        One probe goes forward with the state where the field carries tangents, `J ε`; several
        share a graph backwards, `εᵀ J`. The estimate is the same number.
        """
        if len(probes) == 1 and isinstance(velocity, FieldAt) and velocity.field.carries_tangents:
            value, pushed = velocity.pushforward(x, probes[0])
            estimate = clouds.sum((pushed * probes[0]).sum(-1))
            return Trace(value, estimate.unsqueeze(1), clouds.sum(pushed.square().sum(-1)))
        pullback = _Pullback(velocity, x)
        rows = [pullback(probe) for probe in probes]  # εᵀ J
        estimates = [
            clouds.sum((row * probe).sum(-1)) for row, probe in zip(rows, probes, strict=True)
        ]
        norms = [clouds.sum(row.square().sum(-1)) for row in rows]
        return Trace(pullback.value, torch.stack(estimates, 1), torch.stack(norms, 1).mean(1))


class HutchPlusPlus(AbstractDivergence):
    r"""Hutch++: the trace exactly on a sketched subspace `Q`, Hutchinson on the rest.

    :math:`\mathrm{tr} J = \mathrm{tr}(Q^\top J Q) + \mathbb{E}\, g^\top R J R g`, `R = I − Q Qᵀ`,
    with `Q` an orthonormal basis of `Jᵀ S`. The identity holds for any orthonormal `Q`, so `Q` is a
    constant to the derivative and the gradient stays unbiased.

    Args:
        probes: Number of residual probes `g`, each an independent estimate given the sketch.
        sketch: Number of columns of `S`.

    Reference: Hutch++: Optimal Stochastic Trace Estimation (Meyer et al., 2021), arXiv:2010.09649,
    algorithm 1.
    """

    def __init__(self, probes: int = 1, sketch: int = 2) -> None:
        _require_probes(probes)
        if sketch < 1:
            raise UsageError(f"divergence.sketch: found {sketch}, expected at least 1.")
        self.count = probes
        self.sketch = sketch

    def probes(self, x: Tensor, clouds: Segments, source: torch.Generator) -> Tensor:
        """The sketch, then the residual probes, all projected, shape (sketch + probes, N, d)."""
        shape = tuple(x.shape)
        # Gaussian columns span as many dimensions as they are; signs may coincide.
        drawn = [rng.normal(shape, x, source) for _ in range(self.sketch)]
        drawn += [rng.rademacher(shape, x, source) for _ in range(self.count)]
        return torch.stack([centred(probe, clouds) for probe in drawn])

    def estimates(self) -> int:
        """One a probe."""
        return self.count

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity, and an estimate for each residual probe."""
        pullback = _Pullback(velocity, x)
        basis = self._basis(pullback, clouds, probes[: self.sketch])
        on_basis = [clouds.sum((pullback(q) * q).sum(-1)) for q in basis]
        exact = torch.stack(on_basis).sum(0)

        estimates = []
        for probe in probes[self.sketch :]:
            inside = [
                clouds.expand(clouds.sum((probe * q).sum(-1))).unsqueeze(1) * q for q in basis
            ]
            rest = probe - torch.stack(inside).sum(0)
            row = pullback(rest)
            estimates.append(exact + clouds.sum((row * rest).sum(-1)))
        return Trace(pullback.value, torch.stack(estimates, 1))

    def _basis(self, pullback: _Pullback, clouds: Segments, sketch: Tensor) -> list[Tensor]:
        """Orthonormal directions within each cloud, each shape (N, d)."""
        with torch.no_grad():
            images = torch.stack([centred(pullback(s).detach(), clouds) for s in sketch], -1)
            directions: list[Tensor] = []
            # What is left of a direction already spanned is rounding: its own square root away.
            rounding = torch.finfo(images.dtype).eps ** 0.5
            for image in images.unbind(-1):
                column = image
                # Twice is enough (Giraud et al., 2005) for orthogonality to rounding.
                for _ in range(2):
                    for q in directions:
                        overlap = clouds.expand(clouds.sum((column * q).sum(-1)))
                        column = column - overlap.unsqueeze(1) * q
                size, whole = _length(column, clouds), _length(image, clouds)
                # A direction already spanned is dropped: zero leaves the identity intact.
                spanned = size <= rounding * whole
                directions.append(torch.where(spanned, torch.zeros_like(column), column / size))
        return directions


@dataclass
class _Pullback:
    """`u ↦ uᵀ J` at one state, through one retained graph."""

    velocity: Velocity
    x: Tensor

    def __post_init__(self) -> None:
        self.differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not (self.differentiable and self.x.requires_grad):
                self.x = self.x.detach().requires_grad_()
            self.graph_value = self.velocity(self.x)
        self.value = self.graph_value if self.differentiable else self.graph_value.detach()

    def __call__(self, covector: Tensor) -> Tensor:
        with torch.enable_grad():
            (row,) = torch.autograd.grad(
                self.graph_value,
                self.x,
                covector,
                retain_graph=True,
                create_graph=self.differentiable,
                materialize_grads=True,
            )
        return row


def _length(x: Tensor, clouds: Segments) -> Tensor:
    """Norm of each cloud's rows together, repeated for its rows, shape (N, 1)."""
    return clouds.expand(clouds.sum(x.square().sum(-1)).sqrt()).unsqueeze(1)


def _difference_from_last(
    x: Tensor, clouds: Segments, point: int, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`e_ia − e_na` in every cloud that has a point `i` before its last: covector, rows, clouds."""
    cloud = (clouds.lengths - 1 > point).nonzero().squeeze(1)
    rows = clouds.ptr[cloud] + point
    covector = torch.zeros_like(x)
    covector[rows, axis] = 1
    covector[clouds.ptr[cloud + 1] - 1, axis] = -1
    return covector, rows, cloud


def _require_probes(probes: int) -> None:
    if probes < 1:
        raise UsageError(f"divergence.probes: found {probes}, expected at least 1.")


DIVERGENCES: dict[str, Callable[[], AbstractDivergence]] = {
    "exact": Exact,
    "hutchinson": lambda: Hutchinson(probes=4),
    "hutch_plus_plus": lambda: HutchPlusPlus(probes=2),
}


def divergence_by_name(divergence: AbstractDivergence | str) -> AbstractDivergence:
    """An estimator as it is, or the one that a name stands for, with several probes.

    Raises:
        UsageError: If there is no such name.
    """
    if isinstance(divergence, AbstractDivergence):
        return divergence
    if divergence not in DIVERGENCES:
        raise UsageError(
            f"divergence: found {divergence!r}, expected one of {', '.join(sorted(DIVERGENCES))}."
        )
    return DIVERGENCES[divergence]()
