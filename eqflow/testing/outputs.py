"""What a function of a batch returned, a row a point or a row a cloud, and its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Clouds, centre_of_mass
from eqflow.geometry.representations import Representation
from eqflow.testing.motions import spread

CloudFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Output:
    """The rows a function returned.

    Attributes:
        values: Shape (M, k), float64, with M the number of points or of clouds of `batch`.
        batch: What it was called with.
    """

    values: Tensor
    batch: Clouds

    @property
    def has_row_per_point(self) -> bool:
        """Whether a row belongs to a point; if not, it belongs to a cloud."""
        return self.values.shape[0] == self.batch.x.shape[0]

    @property
    def cloud(self) -> Tensor:
        """The cloud each row belongs to, shape (M,)."""
        if self.has_row_per_point:
            return self.batch.segments.ids
        return torch.arange(len(self.batch), device=self.values.device)

    def largest(self, rows: Tensor) -> Tensor:
        """Largest norm of a row in each cloud, (M, k) to (B,); ∞ where a row is not finite."""
        norms = rows.norm(dim=-1)
        norms = torch.where(norms.isfinite(), norms, torch.full_like(norms, torch.inf))
        if self.has_row_per_point:
            norms = self.batch.segments.max(norms)
        return norms.clamp(min=0)


def evaluate(fn: CloudFunction, batch: Clouds, kind: Representation) -> Output:
    """Call `fn(x, ptr, h)` and check what comes back.

    Raises:
        UsageError: If it is not a tensor.
        ShapeError: If it has neither a row per point nor one per cloud, or the wrong columns.
    """
    # A copy: what centres its input in place must not move the clouds it is tried on.
    returned = fn(batch.x.clone(), batch.ptr, batch.h)
    if not isinstance(returned, Tensor):
        raise UsageError(f"fn: returned a {type(returned).__name__}, expected a tensor.")
    values = returned.detach().double()
    if values.dim() == 1 and kind.columns in (None, 1):
        values = values.unsqueeze(-1)
    points, count = batch.x.shape[0], len(batch)
    columns = "k" if kind.columns is None else kind.columns
    if (
        values.dim() != 2
        or values.shape[0] not in (points, count)
        or kind.columns not in (None, values.shape[1])
    ):
        raise ShapeError(
            f"fn: returned shape {tuple(returned.shape)}, expected ({points}, {columns}) for the "
            f"points or ({count}, {columns}) for the clouds, as output {kind.name!r} asks for."
        )
    return Output(values, batch)


def scale(fn: CloudFunction, output: Output, kind: Representation) -> Tensor:
    """The size that an error in each cloud's output is measured by, shape (B,).

    The largest norm in the cloud's own output, so that a big cloud hides nothing in a small one. An
    output may vanish by symmetry, as a force at equilibrium does, and what is left of it is the
    rounding of larger terms: so the cloud is also jittered by a tenth of its size, and the larger
    of the two outputs counts. Positions are measured from the cloud's centre of mass. Where even
    that vanishes, to 16 units of rounding of the positions or of 1 (the force on a lone point, the
    torque on a pair), the scale is 1: the error is absolute.
    """
    batch = output.batch
    source = rng.generator(0, "testing", "jitter", device=batch.x.device)
    width = spread(batch)
    width = 0.1 * torch.where(width > 0, width, torch.ones_like(width)).unsqueeze(-1)
    noise = rng.normal(tuple(batch.x.shape), width, source) * batch.segments.expand(width)
    jittered = evaluate(fn, batch.with_positions(batch.x + noise.to(batch.x.dtype)), kind)
    sizes = [_size(output, kind), _size(jittered, kind)]
    own, near = (torch.where(size.isfinite(), size, torch.zeros_like(size)) for size in sizes)
    size = torch.maximum(own, near)
    reach = batch.segments.max(batch.x.double().norm(dim=-1)).clamp(min=1)
    rounding = 16 * torch.finfo(batch.x.dtype).eps * reach
    return torch.where(size > rounding, size, torch.ones_like(size))


def _size(output: Output, kind: Representation) -> Tensor:
    if not kind.translates:
        return output.largest(output.values)
    centre = centre_of_mass(output.batch.x.double(), output.batch.segments)
    return output.largest(output.values - centre[output.cloud])
