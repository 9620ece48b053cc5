r"""Scale: what becomes of the output where a cloud is enlarged, `x ↦ s x` about the origin.

A function is homogeneous of degree k where :math:`f(s x) = s^k f(x)` for every `s > 0`: positions
are of degree 1, areas of degree 2, the forces of 1/r of degree −2, and directions and angles, which
are invariant, of degree 0. Most networks are of no degree: that is a property and no fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation, representation
from eqflow.testing.outputs import CloudFunction, Output, evaluate, scale
from eqflow.testing.tolerances import tolerance_of

if TYPE_CHECKING:
    import e3nn.o3

# A function may follow a power over one ratio by chance, and over these hardly.
FACTORS = (0.5, 0.8, 1.3, 2.0)
# A measured degree this close to a multiple of 1/12 is taken for it.
STEPS = 12


@dataclass(frozen=True)
class Scaling:
    """How the output for one cloud, or for all of a batch, follows its size.

    Attributes:
        degree: The exponent k that fits best; NaN where the output is zero, or not finite.
        error: Largest `‖f(s x) − s^k f(x)‖` in units of `s^k` times the output's size.
        tolerance: What rounding may cause.
        cloud: The cloud of the batch in which the error is largest.
    """

    degree: float
    error: float
    tolerance: float
    cloud: int = 0

    @property
    def verdict(self) -> str:
        """`"invariant"`, `"homogeneous"`, `"none"`, or `"zero"`, which is of every degree."""
        if not self.error <= self.tolerance:
            return "none"
        if math.isnan(self.degree):
            return "zero"
        return "invariant" if self.degree == 0 else "homogeneous"

    def __str__(self) -> str:
        if self.verdict == "homogeneous":
            return f"homogeneous of degree {self.degree:.4g}"
        return {"none": "no degree", "zero": "zero at every scale"}.get(self.verdict, self.verdict)


def scaling(
    fn: CloudFunction,
    batch: Clouds,
    output: str | e3nn.o3.Irreps = "scalar",
    tolerance: float | None = None,
) -> Scaling:
    """The degree of homogeneity of `fn`, one for all clouds; arguments as in `equivariance_error`.

    >>> from eqflow.testing import clouds
    >>> batch = dict(clouds())["methane"]
    >>> str(scaling(lambda x, ptr, h: x.square(), batch))
    'homogeneous of degree 2'
    >>> scaling(lambda x, ptr, h: x.sin(), batch).verdict
    'none'
    """
    kind = representation(output, batch.dimension)
    bound = tolerance_of(batch.x.dtype) if tolerance is None else tolerance
    still = evaluate(fn, batch, kind)
    return scaling_of(fn, still, kind, scale(fn, still, kind), bound)


def scaling_of(
    fn: CloudFunction, still: Output, kind: Representation, size: Tensor, tolerance: float
) -> Scaling:
    """As `scaling`, of a function whose output for the clouds, and its size (B,), are known."""
    batch = still.batch
    enlarged = [evaluate(fn, batch.with_positions(s * batch.x), kind) for s in FACTORS]
    degree = _degree(still, enlarged, size, tolerance)
    # Of every degree where all is zero: whether it is zero is then the question.
    exponent = 0.0 if math.isnan(degree) else degree
    errors = torch.zeros_like(size)
    for s, moved in zip(FACTORS, enlarged, strict=True):
        power = s**exponent
        errors = errors.maximum(still.largest(moved.values - power * still.values) / (power * size))
    if not len(batch):
        return Scaling(degree, 0.0, tolerance)
    cloud = int(errors.argmax())
    return Scaling(degree, float(errors[cloud]), tolerance, cloud)


def _degree(still: Output, enlarged: list[Output], size: Tensor, tolerance: float) -> float:
    """The median exponent over clouds and factors; NaN where no output is more than rounding."""
    own = still.largest(still.values)
    counts = own > tolerance * size
    found = []
    for s, moved in zip(FACTORS, enlarged, strict=True):
        ratio = moved.largest(moved.values)[counts] / own[counts]
        found.append(ratio.log() / math.log(s))
    exponents = torch.cat(found)
    exponents = exponents[exponents.isfinite()]
    if not exponents.numel():
        return math.nan
    degree = float(exponents.median())
    near = round(degree * STEPS) / STEPS
    return near if abs(degree - near) <= 100 * tolerance else degree
