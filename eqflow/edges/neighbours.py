"""Neighbour search over packed clouds: pairs within a cutoff, and the k nearest.

One k-d tree serves all clouds: an extra coordinate puts them further apart than any of their
diameters. The search runs on the CPU (SciPy) in float64; its result is moved back to the device of
the positions. It is not differentiated: the set of neighbours is piecewise constant.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from eqflow.errors import NumericalError, ShapeError, UsageError
from eqflow.geometry.centring import centred
from eqflow.geometry.segments import Segments


def pairs_within(x: Tensor, r: float, clouds: Segments) -> tuple[Tensor, Tensor]:
    """Ordered pairs (sender, receiver) at most `r` apart, sorted by receiver, then sender."""
    if not 0 < r < math.inf:
        raise UsageError(f"radius: found {r}, expected a positive, finite cutoff in the unit of x.")
    tree = cKDTree(_separated(x, clouds, reach=r))
    pairs = tree.query_pairs(r, output_type="ndarray").astype(np.int64)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return _sorted(both[:, 0], both[:, 1], x)


def nearest_pairs(x: Tensor, k: int, clouds: Segments) -> tuple[Tensor, Tensor]:
    """Pairs (sender, receiver) of each node's `k` nearest, sorted by receiver, then sender."""
    if not isinstance(k, int) or k < 1:
        raise UsageError(f"knn: found k = {k}, expected a whole number of at least 1.")
    if clouds.rows == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=x.device)
        return empty, empty
    points = _separated(x, clouds, reach=0.0)
    # Two columns at least, so that SciPy returns a matrix; the node itself is one of them.
    _, found = cKDTree(points).query(points, k=k + 1)
    receiver = np.repeat(np.arange(len(points)), k + 1)
    sender = found.reshape(-1)
    cloud = np.append(clouds.ids.cpu().numpy(), -1)  # SciPy marks a missing neighbour by N
    valid = (sender != receiver) & (cloud[sender] == cloud[receiver])
    rank = np.cumsum(valid.reshape(-1, k + 1), axis=1).reshape(-1)
    valid &= rank <= k  # coincident points can hide the node itself from its own list
    return _sorted(sender[valid], receiver[valid], x)


def _separated(x: Tensor, clouds: Segments, reach: float) -> np.ndarray:
    """Centred positions with one more coordinate that keeps the clouds apart, (N, d + 1)."""
    if x.dim() != 2:
        raise ShapeError(f"x: found shape {tuple(x.shape)}, expected (N, d).")
    local = centred(x.detach().double(), clouds).cpu().numpy()
    if not np.isfinite(local).all():
        raise NumericalError("neighbour search: found positions that are not finite.")
    extent = 2 * np.linalg.norm(local, axis=1).max(initial=0.0) + 2 * reach + 1
    cloud = clouds.ids.cpu().numpy()
    return np.concatenate([local, (cloud * extent)[:, None]], axis=1)


def _sorted(sender: np.ndarray, receiver: np.ndarray, x: Tensor) -> tuple[Tensor, Tensor]:
    order = np.lexsort((sender, receiver))
    return (
        torch.from_numpy(sender[order].astype(np.int64)).to(x.device),
        torch.from_numpy(receiver[order].astype(np.int64)).to(x.device),
    )
