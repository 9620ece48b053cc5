"""The laws a flow claims to obey, measured: symmetry, independence, invertibility, divergence.

Everything runs in float64 on structures drawn from the flow itself. What goes through the solver is
compared at a tolerance well above the solver's own, which is set tight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.flows import Exact, Flow, Hutchinson, Solver
from eqflow.flows.continuous import DATA, LATENT
from eqflow.geometry import Clouds, centre_of_mass
from eqflow.testing import TOLERANCE, equivariance_error, independence_error

SOLVER = Solver(method="dopri5", rtol=1e-8, atol=1e-8)
SOLVED_TOLERANCE = 1e-5
# A mean of many probes may stray from the exact trace by this many of its standard errors.
DEVIATIONS = 5.0
PROBES = 64
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


def flow_laws(flow: Flow, structures: int = 8, seed: int = 0) -> list[Law]:
    """Measure every law on structures drawn from the flow.

    Args:
        flow: A trained flow; a copy of it is used.
        structures: How many, at least 2 or independence of the batch says nothing.
        seed: Structures, motions and probes are functions of it.
    """
    flow = copy.deepcopy(flow).double().cpu()
    flow.solver = SOLVER
    batch = flow.sample(structures, seed).to(torch.float64)
    return [
        *_velocity_laws(flow, batch, seed),
        *_density_laws(flow, batch, seed),
        _round_trip(flow, batch),
        _agreement(flow, structures, seed),
        _divergence(flow, batch, seed),
    ]


def _velocity_laws(flow: Flow, batch: Clouds, seed: int) -> list[Law]:
    d = batch.dimension
    tolerance = TOLERANCE[torch.float64]

    def worst(measure: Callable[[Callable[..., Tensor]], float]) -> float:
        return max(measure(_velocity(flow, batch, t)) for t in TIMES)

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


def _density_laws(flow: Flow, batch: Clouds, seed: int) -> list[Law]:
    d = batch.dimension
    density = _log_prob(flow, batch)
    return [
        Law(
            f"log-likelihood: motions, E({d})",
            equivariance_error(density, batch, f"E({d})", "scalar", seed, motions=1),
            SOLVED_TOLERANCE,
        ),
        Law(
            "log-likelihood: permutations, S(n)",
            equivariance_error(density, batch, "S(n)", "scalar", seed, motions=1),
            SOLVED_TOLERANCE,
        ),
        Law(
            "log-likelihood: independence of the batch",
            independence_error(density, batch),
            SOLVED_TOLERANCE,
        ),
    ]


def _round_trip(flow: Flow, batch: Clouds) -> Law:
    """Data to noise and back, in units of the flow's scale."""
    encoded = flow.encode(batch)
    with torch.no_grad():
        there = flow.continuous.transport(
            encoded.x, encoded.clouds, encoded.context, start=DATA, end=LATENT, solver=SOLVER
        )
        back = flow.continuous.transport(
            there.x, encoded.clouds, encoded.context, start=LATENT, end=DATA, solver=SOLVER
        )
    error = float((back.x - encoded.x).abs().max())
    return Law("inverse: to noise and back (data scale)", error, SOLVED_TOLERANCE)


def _agreement(flow: Flow, structures: int, seed: int) -> Law:
    drawn, on_the_way = flow.sample_and_log_prob(structures, seed)
    scored = flow.log_prob(drawn)
    error = float((scored - on_the_way).abs().max() / (1 + scored.abs().max()))
    return Law("log-likelihood: of a sample, drawn and scored", error, SOLVED_TOLERANCE)


def _divergence(flow: Flow, batch: Clouds, seed: int) -> Law:
    """How many standard errors the mean of many probes is from the exact trace."""
    encoded = flow.encode(batch)
    at = flow.continuous.dynamics(encoded.clouds, encoded.context)
    velocity = at(encoded.x.new_tensor(0.5), encoded.x)
    exact, estimate = Exact(), Hutchinson(PROBES)
    source = rng.generator(seed, "check", "probes")
    with torch.no_grad():
        truth = exact(velocity, encoded.x, encoded.clouds, encoded.x.new_zeros(0)).estimates[:, 0]
        probes = estimate.probes(encoded.x, encoded.clouds, source)
        drawn = estimate(velocity, encoded.x, encoded.clouds, probes).estimates
    spread = drawn.std(1) / math.sqrt(PROBES)
    rounding = 1e-10 * (1 + truth.abs())
    error = float(((drawn.mean(1) - truth).abs() / (spread + rounding)).max())
    return Law("divergence: estimate against exact (std. errors)", error, DEVIATIONS)


def _velocity(flow: Flow, batch: Clouds, t: float) -> Callable[..., Tensor]:
    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        clouds = _clouds(batch, x * flow.scale, ptr, h)
        encoded = flow.encode(clouds)
        # Not the centred positions: the law is about the field, which must not see the centre.
        with torch.no_grad():
            return flow.continuous.velocity(x.new_tensor(t), x, encoded.clouds, encoded.context)

    return velocity


def _log_prob(flow: Flow, batch: Clouds) -> Callable[..., Tensor]:
    def log_prob(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return flow.log_prob(_clouds(batch, x, ptr, h)).unsqueeze(1)

    return log_prob


def _clouds(like: Clouds, x: Tensor, ptr: Tensor, h: Tensor) -> Clouds:
    numbers = None if like.numbers is None else h[:, 0].round().to(torch.int64)
    return replace(like, x=x, ptr=ptr, numbers=numbers, source=())
