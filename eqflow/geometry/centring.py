"""Centres of mass, and the zero-mean subspace on which translation-invariant densities live.

A state may hold features beside positions, in its last columns: only positions have a centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.errors import NotCentered, ShapeError
from eqflow.geometry.segments import Segments

# A centre of mass further off than this, relative to the size of the cloud, is not rounding.
CENTRE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1}


def centre_of_mass(x: Tensor, ptr: Tensor | Segments) -> Tensor:
    """Mean position of each cloud, (N, d) to (B, d), in the unit of `x`."""
    return Segments.of(ptr).mean(x)


def split_state(state: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """Positions (…, d) and features (…, K) of a state (…, d + K).

    Raises:
        ShapeError: If no column is left for positions.
    """
    dimension = state.shape[-1] - features
    if dimension < 1:
        raise ShapeError(
            f"state: found {state.shape[-1]} columns, expected at least one coordinate before "
            f"{features} features."
        )
    return state[..., :dimension], state[..., dimension:]


def centred(x: Tensor, ptr: Tensor | Segments, features: int = 0) -> Tensor:
    """Positions with each cloud's centre of mass moved to the origin, shape (N, …, d + features).

    As a linear map this is the orthogonal projection onto the zero-mean subspace, which has
    `(n − 1) d` dimensions for `n` points in `d` dimensions; the last `features` columns stay as
    they are.
    """
    clouds = Segments.of(ptr)
    if features:
        positions, rest = split_state(x, features)
        return torch.cat([centred(positions, clouds), rest], -1)
    if clouds.uniform and len(x) == clouds.rows:
        stacked = x.unflatten(0, (clouds.count, clouds.uniform))
        return (stacked - stacked.mean(1, keepdim=True)).flatten(0, 1)
    return x - clouds.expand(clouds.mean(x))


def require_centred(x: Tensor, ptr: Tensor | Segments) -> None:
    """Raise `NotCentered` where a centre of mass is off by more than the tolerance of the dtype.

    Raises:
        ShapeError: If positions are of another type than float32, float64 or bfloat16.
    """
    if x.dtype not in CENTRE_TOLERANCE:
        supported = ", ".join(str(dtype) for dtype in CENTRE_TOLERANCE)
        raise ShapeError(f"x: found {x.dtype}, expected one of {supported}.")
    clouds = Segments.of(ptr)
    offset = clouds.mean(x.detach()).norm(dim=-1)
    size = clouds.mean(x.detach().square().sum(-1)).sqrt()
    wrong = offset > CENTRE_TOLERANCE[x.dtype] * (1 + size)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise NotCentered(
            f"cloud {first}: the centre of mass is {float(offset[first]):.3g} from the origin, "
            "expected 0. Pass the positions through eqflow.geometry.centred first."
        )


def degrees_of_freedom(ptr: Tensor | Segments, dimension: int, features: int = 0) -> Tensor:
    """Dimension `(n − 1) d` of each cloud's zero-mean subspace, and `n K` of features; (B,)."""
    lengths = Segments.of(ptr).lengths
    return (lengths - 1).clamp(min=0) * dimension + lengths * features
