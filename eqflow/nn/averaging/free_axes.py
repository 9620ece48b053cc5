r"""What an output may be where a cloud leaves axes of its pose free.

A cloud on a line looks the same however it is turned about the line, and so must an equivariant
output. A pose of it has one axis that the cloud determines and others that are a choice, and an
average over all choices is a projection: onto what every `D(g)` leaves alone, `g` turning the free
axes among themselves. A vector keeps its component along the line; a single point has no vector
but zero.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from eqflow import rng
from eqflow.geometry import random_orthogonal
from eqflow.geometry.representations import Representation, representation

# Two generic rotations generate all of SO(m); a few more make the null space well conditioned.
GENERATORS = 6
NULL = 1e-6


@lru_cache(maxsize=64)
def projectors(output: str, dimension: int, proper: bool) -> Tensor:
    """Projections for each rank 0, …, d of a cloud, shape (d + 1, k, k), float64.

    Identity for ranks `d − 1` and `d`, with which all axes are determined.
    """
    kind = representation(output, dimension)
    return torch.stack([_projector(kind, rank, dimension, proper) for rank in range(dimension + 1)])


def _projector(kind: Representation, rank: int, dimension: int, proper: bool) -> Tensor:
    """Projection onto the vectors that the group of the axes from `rank` on leaves alone."""
    assert kind.matrices is not None
    like = torch.zeros((), dtype=torch.float64)
    free = dimension - rank
    turned = torch.eye(dimension, dtype=torch.float64).repeat(GENERATORS, 1, 1)
    if free >= 2:
        source = rng.generator(0, "frames", "free", dimension, rank)
        turned[:, rank:, rank:] = random_orthogonal(GENERATORS, free, like, source, proper=True)
        if not proper:
            turned[0, rank] *= -1
    moved = kind.matrices(turned)
    identity = torch.eye(moved.shape[-1], dtype=torch.float64)
    _, sizes, directions = torch.linalg.svd((moved - identity).reshape(-1, moved.shape[-1]))
    kept = directions[sizes < NULL]
    return kept.mT @ kept
