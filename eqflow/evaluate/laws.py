"""The laws a flow claims to obey, measured: symmetry, independence, invertibility, divergence.

Everything runs in float64 on structures drawn from the flow itself. What goes through the solver is
compared at a tolerance well above the solver's own, which is set tight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.flows import ContinuousFlow, Exact, Flow, Hutchinson, Solver
from eqflow.flows.continuous import DATA, LATENT
from eqflow.geometry import Clouds, Segments, centre_of_mass
from eqflow.testing import (
    TOLERANCE,
    Motion,
    equivariance_error,
    independence_error,
    random_motions,
)

SOLVER = Solver(method="dopri5", rtol=1e-8, atol=1e-8)
# Motions and permutations leave every step of the solver the same: its error must not enter.
INVARIANCE_TOLERANCE = SOLVER.rtol
# Another batch or direction of time takes other steps, whose errors the flow can magnify.
SOLVED_TOLERANCE = 1e-5
# A mean of many probes may stray from the exact trace by this many of its standard errors.
DEVIATIONS = 5.0
PROBES = 64
# Central differences in float64: the error of the step squared and that of rounding meet near here.
DIFFERENCE_STEP = 1e-5
DIFFERENCE_TOLERANCE = 1e-6
CANDIDATES = 16
MOST_POINTS = 16
TIMES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Law:
    """One law, measured.

    Attributes:
        name: What is claimed.
        error: How far it is missed; relative unless the name says otherwise.
        tolerance: How far it may be missed.
        dtype: Arithmetic it was measured in.
    """

    name: str
    error: float
    tolerance: float
    dtype: str = "float64"

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok  " if self.holds else "FAIL"
        return (
            f"{verdict} {self.name:<52} error {self.error:.1e}  "
            f"tolerance {self.tolerance:.0e}  {self.dtype}"
        )


def flow_laws(flow: Flow, structures: int = 8, seed: int = 0) -> Iterator[Law]:
    """Measure every law on structures drawn from the flow, each given as soon as it is known.

    Args:
        flow: A trained flow; a copy of it is used.
        structures: How many, at least 2 or independence of the batch says nothing.
        seed: Structures, motions and probes are functions of it.
    """
    flow = copy.deepcopy(flow).double().cpu()
    flow.solver = SOLVER
    batch, on_the_way = _small_structures(flow, structures, seed)
    encoded = flow.encode(batch)
    yield from velocity_laws(lambda t: _velocity(flow, batch, t), batch, seed)
    yield round_trip(flow.continuous, encoded.x, encoded.clouds, encoded.context)
    yield from divergence_laws(flow.continuous, encoded.x, encoded.clouds, encoded.context, seed)
    yield from _density_laws(flow, batch, on_the_way, seed)


def _small_structures(flow: Flow, count: int, seed: int) -> tuple[Clouds, Tensor]:
    """Structures drawn from the flow with their log-likelihood, the smallest of many make-ups.

    An exact trace has a direction for each degree of freedom: small structures show the same laws
    for less.
    """
    source = rng.generator(seed, "check", "compositions")
    sizes, numbers = flow.compositions.draw(CANDIDATES * count, source)
    smallest = sizes.argsort(stable=True)[:count]
    if numbers is None:
        few = sizes[smallest].clamp(max=MOST_POINTS)  # the laws hold for any number of points
        return flow.sample_and_log_prob(count, seed, sizes=few.tolist())
    each = numbers.split(sizes.tolist())
    return flow.sample_and_log_prob(count, seed, numbers=[each[i] for i in smallest.tolist()])


def velocity_laws(
    velocity_at: Callable[[float], Callable[..., Tensor]], batch: Clouds, seed: int
) -> list[Law]:
    """How the velocity of positions moves with them.

    Args:
        velocity_at: The velocity at a time as a function of `x, ptr, h` as those of `Clouds`.
        batch: Structures to measure it on.
        seed: Motions are a function of it.
    """
    d = batch.dimension
    tolerance = TOLERANCE[torch.float64]

    def worst(measure: Callable[[Callable[..., Tensor]], float]) -> float:
        return max(measure(velocity_at(t)) for t in TIMES)

    return [
        Law(
            f"velocity: rotations and reflections, O({d})",
            worst(lambda v: equivariance_error(v, batch, f"O({d})", "vector", seed)),
            tolerance,
        ),
        Law(
            f"velocity: translations, T({d})",
            worst(lambda v: equivariance_error(v, batch, f"T({d})", "vector", seed)),
            tolerance,
        ),
        Law(
            "velocity: permutations, S(n)",
            worst(lambda v: equivariance_error(v, batch, "S(n)", "vector", seed)),
            tolerance,
        ),
        Law(
            "velocity: independence of the batch",
            worst(lambda v: independence_error(v, batch)),
            tolerance,
        ),
        Law(
            "velocity: the centre of mass at rest",
            worst(lambda v: _drift(v(batch.x, batch.ptr, batch.h), batch)),
            tolerance,
        ),
    ]


def _drift(velocity: Tensor, batch: Clouds) -> float:
    """Largest velocity of a centre of mass, relative to that of the points."""
    size = batch.segments.mean(velocity.square().sum(-1)).sqrt()
    return float((centre_of_mass(velocity, batch.ptr).norm(dim=-1) / (1e-6 + size)).max())


def _density_laws(flow: Flow, batch: Clouds, on_the_way: Tensor, seed: int) -> list[Law]:
    d = batch.dimension
    moved = motion_of(batch, f"E({d})", "combined", seed).apply(batch)
    reordered = motion_of(batch, "S(n)", "permutation", seed).apply(batch)
    scored = flow.log_prob(Clouds.join([batch, moved, reordered]))
    still, turned, shuffled = scored.split(len(batch))
    alone = torch.cat([flow.log_prob(cloud) for cloud in batch])
    return [
        Law(f"log-likelihood: {claim}", relative(other, still), tolerance)
        for claim, other, tolerance in (
            (f"motions, E({d})", turned, INVARIANCE_TOLERANCE),
            ("permutations, S(n)", shuffled, INVARIANCE_TOLERANCE),
            ("independence of the batch", alone, SOLVED_TOLERANCE),
            ("of a sample, drawn and scored", on_the_way, SOLVED_TOLERANCE),
        )
    ]


def motion_of(batch: Clouds, group: str, kind: str, seed: int) -> Motion:
    """An element of the group for each cloud, all of one kind."""
    return next(m for m in random_motions(batch, group, seed, 1) if m.kind == kind)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference in units of `1 + |expected|`; NaN where one is not finite."""
    return float(((found - expected).abs() / (1 + expected.abs())).max())


def round_trip(
    flow: ContinuousFlow,
    x: Tensor,
    clouds: Segments,
    context: Tensor | None = None,
    start: float = DATA,
    solver: Solver = SOLVER,
) -> Law:
    """States of data (or of noise) to the other end and back, in units of the flow's scale."""
    end, way = (LATENT, "to") if start == DATA else (DATA, "from")
    with torch.no_grad():
        there = flow.transport(x, clouds, context, start=start, end=end, solver=solver)
        back = flow.transport(there.x, clouds, context, start=end, end=start, solver=solver)
    error = float((back.x - x).abs().max())
    return Law(f"inverse: {way} noise and back (data scale)", error, SOLVED_TOLERANCE)


def divergence_laws(
    flow: ContinuousFlow, x: Tensor, clouds: Segments, context: Tensor | None, seed: int
) -> list[Law]:
    """The exact trace against finite differences, and the mean of many probes against it."""
    velocity = flow.dynamics(clouds, context)(x.new_tensor(0.5), x)
    estimate = Hutchinson(PROBES)
    with torch.no_grad():
        exact = Exact()(velocity, x, clouds, x.new_zeros(0)).estimates[:, 0]
        source = rng.generator(seed, "check", "probes")
        probes = estimate.probes(x, clouds, source, flow.field.state_features)
        drawn = estimate(velocity, x, clouds, probes).estimates
        differences = _trace_by_differences(velocity, x, clouds)
    spread = drawn.std(1) / math.sqrt(PROBES)
    rounding = TOLERANCE[torch.float64] * (1 + exact.abs())
    deviation = float(((drawn.mean(1) - exact).abs() / (spread + rounding)).max())
    return [
        Law(
            "divergence: exact against finite differences",
            relative(differences, exact),
            DIFFERENCE_TOLERANCE,
        ),
        Law("divergence: estimate against exact (std. errors)", deviation, DEVIATIONS),
    ]


def _trace_by_differences(
    velocity: Callable[[Tensor], Tensor], x: Tensor, clouds: Segments
) -> Tensor:
    """The trace without any derivative: `Σ_i (v_i(x + s e_i) − v_i(x − s e_i)) / 2s`, (B,)."""
    trace = x.new_zeros(clouds.count)
    for point in range(clouds.longest):
        for axis in range(x.shape[1]):
            step = torch.zeros_like(x)
            step[clouds.place == point, axis] = DIFFERENCE_STEP
            change = (velocity(x + step) - velocity(x - step)) * (step > 0)
            trace = trace + clouds.sum(change.sum(-1)) / (2 * DIFFERENCE_STEP)
    return trace


def _velocity(flow: Flow, batch: Clouds, t: float) -> Callable[..., Tensor]:
    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        encoded = flow.encode(_clouds(batch, x, ptr, h))
        # Not the centred positions: the law is about the field, which must not see the centre.
        state = x / flow.scale
        with torch.no_grad():
            return flow.continuous.velocity(x.new_tensor(t), state, encoded.clouds, encoded.context)

    return velocity


def _clouds(like: Clouds, x: Tensor, ptr: Tensor, h: Tensor) -> Clouds:
    numbers = None if like.numbers is None else h[:, 0].round().to(torch.int64)
    return replace(like, x=x, ptr=ptr, numbers=numbers, source=())
