"""How steep averages over each frame become, and where they jump."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from frames_errors import Backbone
from torch import Tensor

from eqflow import rng
from eqflow.geometry import Clouds, Segments, centred
from eqflow.geometry.frames import AbstractFrame, OrbitFrame, PCAFrame, WeightedFrame
from eqflow.geometry.frames.pca import second_moments
from eqflow.nn.averaging.frame_average import FrameAverage
from eqflow.testing import clouds, continuity

FRAMES: dict[str, AbstractFrame] = {
    # However small the gap: what the eigensolver returns.
    "pca": PCAFrame(gap=1e-15, on_degenerate="warn"),
    "orbit": OrbitFrame(),
    "weighted": WeightedFrame(),
}
GAPS = torch.logspace(-6, -0.5, 23, dtype=torch.float64)
# Gaps that the slope of the gradient is fitted over: small, and far from rounding.
FITTED = (1e-5, 1e-2)


def equal_moments(gap: Tensor) -> Clouds:
    """A generic cloud of 7 points for each gap (G,), its larger moments that much apart."""
    batch = dict(clouds())["generic"][0]
    return with_gaps(batch, gap)


def benzenes(gap: Tensor) -> Clouds:
    """Benzene, shorter along one direction in its plane."""
    return with_gaps(dict(clouds())["benzene"], gap)


def with_gaps(batch: Clouds, gap: Tensor) -> Clouds:
    """A cloud along its principal axes, scaled along the second: moments λ and `λ (1 − gap)`."""
    x = centred(batch.x, batch.ptr)
    moments, axes = (found[0] for found in torch.linalg.eigh(second_moments(x, batch.segments)))
    along = x @ axes.flip(-1)
    largest, second = moments.flip(-1)[:2]
    factors = torch.ones(len(gap), 3, dtype=x.dtype)
    factors[:, 1] = (largest * (1 - gap) / second).sqrt()
    return Clouds.from_dense(along * factors.unsqueeze(1), batch.numbers)


SUBJECTS: dict[str, Callable[[Tensor], Clouds]] = {"generic": equal_moments, "benzene": benzenes}


def gradients() -> dict[str, Any]:
    """`‖∇ vᵀJv‖` of a vector average with its Jacobian J, by gap and frame."""
    found: dict[str, Any] = {"gaps": GAPS.tolist()}
    backbone = Backbone()
    print("\n‖∇ vᵀJv‖ at a gap of " + ", ".join(f"{g:.0e}" for g in GAPS[::8].tolist()))
    for name, subject in SUBJECTS.items():
        batch = subject(GAPS)
        row: dict[str, Any] = {}
        for frame_name, frame in FRAMES.items():
            norms = gradient_of_product(FrameAverage(backbone, "E(3)", frame, "vector"), batch)
            row[frame_name] = {"norms": norms.tolist(), "slope": slope(norms)}
            cells = " ".join(f"{norm:9.1e}" for norm in norms[::8].tolist())
            print(f"{name:<10}{frame_name:<10}{cells}   ~ gap^{row[frame_name]['slope']:.2f}")
        found[name] = row
    return found


def gradient_of_product(model: FrameAverage, batch: Clouds) -> Tensor:
    """Norm of `∇_x vᵀJv` for each cloud of one size, with one v for all, shape (B,)."""
    points = int(batch.sizes[0])
    source = rng.generator(0, "frames", "probe", points)
    probe = rng.rademacher((1, points, 3), batch.x, source)
    v = probe.expand(len(batch), -1, -1).reshape(-1, 3)
    x = batch.x.clone().requires_grad_()
    value = model(x, batch.ptr, batch.h)
    (product,) = torch.autograd.grad(value, x, v, create_graph=True)
    (gradient,) = torch.autograd.grad((product * v).sum(), x)
    return Segments(batch.ptr).sum(gradient.square().sum(-1)).sqrt()


def slope(norms: Tensor) -> float:
    """The power of the gap that norms (G,) follow, by least squares of logarithms."""
    least, most = FITTED
    fitted = (least <= GAPS) & (most >= GAPS)
    a, b = GAPS[fitted].log(), norms[fitted].log()
    a = a - a.mean()
    return float((a * b).sum() / a.square().sum())


def jumps() -> dict[str, Any]:
    """Relative change of a vector average by the size of a perturbation, cloud and frame."""
    shapes = dict(clouds())
    batches = {
        "benzene": shapes["benzene"],
        "methane": shapes["methane"],
        "sf6": shapes["sf6"],
        "generic, two equal moments": equal_moments(torch.zeros(1, dtype=torch.float64)),
    }
    backbone = Backbone()
    found: dict[str, Any] = {}
    print("\nchange of the output by perturbations of 1e-9, 1e-8, …, 1e-2")
    for name, batch in batches.items():
        found[name] = {}
        for frame_name, frame in FRAMES.items():
            model = FrameAverage(backbone, "E(3)", frame, "vector")
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore", UserWarning)
                seen = continuity(model, batch, "vector")
            found[name][frame_name] = {
                "sizes": seen.sizes,
                "changes": seen.changes,
            }
            at = "  ".join(f"{change:.0e}" for change in seen.changes)
            print(f"{name:<28}{frame_name:<10}{at}", flush=True)
    return found
