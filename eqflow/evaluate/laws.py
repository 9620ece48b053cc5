"""The laws a flow claims to obey, measured: symmetry, independence, invertibility, divergence.

Everything runs in float64 on structures drawn from the flow itself. What goes through the solver is
compared at a tolerance well above the solver's own, which is set tight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.flows import ContinuousFlow, Exact, Flow, Hutchinson, Solver
from eqflow.flows.continuous import DATA, LATENT
from eqflow.geometry import Clouds, Segments, centre_of_mass
from eqflow.testing import TOLERANCE, Motion, discrepancies, random_motions
from eqflow.testing.independence import independence_errors

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
# Where the exact trace takes a derivative a degree of freedom.
FEW_POINTS = 5
TIMES = (0.0, 0.5, 1.0)

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Law:
    """One law, measured.

    Attributes:
        name: What is claimed.
        error: How far it is missed; relative unless the name says otherwise.
        tolerance: How far it may be missed.
        dtype: Arithmetic it was measured in.
        cloud: The structure on which it is missed the farthest, where one can be named.
    """

    name: str
    error: float
    tolerance: float
    dtype: str = "float64"
    cloud: str = ""

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok  " if self.holds else "FAIL"
        where = f"  worst: {self.cloud}" if self.cloud else ""
        return (
            f"{verdict} {self.name:<52} error {self.error:.1e}  "
            f"tolerance {self.tolerance:.0e}  {self.dtype}{where}"
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
    # The laws hold for any points, so for some of a structure's.
    most = MOST_POINTS if flow.continuous.field.traces_itself else FEW_POINTS
    if numbers is None:
        few = sizes[smallest].clamp(max=most)
        return flow.sample_and_log_prob(count, seed, sizes=few.tolist())
    each = numbers.split(sizes.tolist())
    some = [each[i][:most] for i in smallest.tolist()]
    return flow.sample_and_log_prob(count, seed, numbers=some)


def velocity_laws(velocity_at: Callable[[float], Function], batch: Clouds, seed: int) -> list[Law]:
    """How the velocity of positions moves with them.

    Args:
        velocity_at: The velocity at a time as a function of `x, ptr, h` as those of `Clouds`.
        batch: Structures to measure it on.
        seed: Motions are a function of it.
    """
    d = batch.dimension
    fields = [velocity_at(t) for t in TIMES]
    return [
        symmetry_law(name, fields, batch, group, "vector", seed)
        for name, group in (
            (f"velocity: rotations and reflections, O({d})", f"O({d})"),
            (f"velocity: translations, T({d})", f"T({d})"),
            ("velocity: permutations, S(n)", "S(n)"),
        )
    ] + [
        independence_law("velocity: independence of the batch", fields, batch),
        law_of_each(
            "velocity: the centre of mass at rest",
            torch.stack([_drift(v(batch.x, batch.ptr, batch.h), batch) for v in fields]).amax(0),
            TOLERANCE[torch.float64],
            batch.segments,
        ),
    ]


def symmetry_law(
    name: str, functions: Sequence[Function], batch: Clouds, group: str, output: str, seed: int
) -> Law:
    """The largest error of equivariance over several functions of clouds, in float64."""
    found = [
        entry for fn in functions for entry in discrepancies(fn, batch, group, output, seed=seed)
    ]
    worst = max(found, key=lambda entry: entry.error)
    where = structure(batch.segments, worst.cloud)
    return Law(name, worst.error, TOLERANCE[torch.float64], cloud=where)


def independence_law(name: str, functions: Sequence[Function], batch: Clouds) -> Law:
    """The largest difference between a structure alone and in its batch, over several functions."""
    errors = torch.tensor([independence_errors(fn, batch) for fn in functions]).amax(0)
    return law_of_each(name, errors, TOLERANCE[torch.float64], batch.segments)


def law_of_each(name: str, errors: Tensor, tolerance: float, clouds: Segments) -> Law:
    """A law whose error is the largest of those of the structures, (B,); NaN if one is."""
    worst = int(errors.argmax())
    return Law(name, float(errors[worst]), tolerance, cloud=structure(clouds, worst))


def structure(clouds: Segments, place: int) -> str:
    """How a message names a structure that was drawn."""
    return f"structure {place + 1} ({int(clouds.lengths[place])} points)"


def _drift(velocity: Tensor, batch: Clouds) -> Tensor:
    """Velocity of each centre of mass, relative to that of the points, (B,)."""
    size = batch.segments.mean(velocity.square().sum(-1)).sqrt()
    return centre_of_mass(velocity, batch.ptr).norm(dim=-1) / (1e-6 + size)


def _density_laws(flow: Flow, batch: Clouds, on_the_way: Tensor, seed: int) -> list[Law]:
    d = batch.dimension
    moved = motion_of(batch, f"E({d})", "combined", seed).apply(batch)
    reordered = motion_of(batch, "S(n)", "permutation", seed).apply(batch)
    scored = flow.log_prob(Clouds.join([batch, moved, reordered]))
    still, turned, shuffled = scored.split(len(batch))
    alone = torch.cat([flow.log_prob(cloud) for cloud in batch])
    return [
        law_of_each(
            f"log-likelihood: {claim}", differences(other, still), tolerance, batch.segments
        )
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
    return float(differences(found, expected).max())


def differences(found: Tensor, expected: Tensor) -> Tensor:
    """Each difference in units of `1 + |expected|`."""
    return (found - expected).abs() / (1 + expected.abs())


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
    errors = (back.x - x).abs().amax(1)
    worst = int(errors.argmax())
    name = f"inverse: {way} noise and back (data scale)"
    where = structure(clouds, int(clouds.ids[worst]))
    return Law(name, float(errors[worst]), SOLVED_TOLERANCE, cloud=where)


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
        measured = _trace_by_differences(velocity, x, clouds)
    spread = drawn.std(1) / math.sqrt(PROBES)
    rounding = TOLERANCE[torch.float64] * (1 + exact.abs())
    deviations = (drawn.mean(1) - exact).abs() / (spread + rounding)
    return [
        law_of_each(
            "divergence: exact against finite differences",
            differences(measured, exact),
            DIFFERENCE_TOLERANCE,
            clouds,
        ),
        law_of_each(
            "divergence: estimate against exact (std. errors)", deviations, DEVIATIONS, clouds
        ),
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


def _velocity(flow: Flow, batch: Clouds, t: float) -> Function:
    return lambda x, ptr, h: velocity_of_flow(flow, _clouds(batch, x, ptr, h), t)


def velocity_of_flow(flow: Flow, clouds: Clouds, t: float) -> Tensor:
    """The velocity of positions of `clouds` at time `t`, shape (N, d), wherever their centres are.

    Raises:
        UnknownElement: If an element is not one of the flow's.
    """
    encoded = flow.encode(clouds)
    # Not the centred positions: the law is about the field, which must not see the centre.
    state = (clouds.x / flow.scale).to(encoded.x)
    with torch.no_grad():
        return flow.continuous.velocity(state.new_tensor(t), state, encoded.clouds, encoded.context)


def _clouds(like: Clouds, x: Tensor, ptr: Tensor, h: Tensor) -> Clouds:
    numbers = None if like.numbers is None else h[:, 0].round().to(torch.int64)
    return replace(like, x=x, ptr=ptr, numbers=numbers, source=())
