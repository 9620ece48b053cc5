r"""Which columns of a Jacobian have to be computed, and how symmetry gives the others.

A translation invariant field has :math:`J t = 0` along translations `t`; one that turns with its
state has :math:`J \Omega x = \Omega v` for every antisymmetric :math:`\Omega`. Columns of `W` being
such directions in a cloud and of `V` what `J` makes of them, :math:`J W = V`, and as many
coordinates `p`, the pivots, in which they are independent: with the directions combined so that
:math:`W_p = I`,

.. math::
    J e_p = V_p - \sum_o W_{op} J e_o, \qquad
    \mathrm{tr} J = \sum_p V_{pp} + \sum_o \Big(e_o - \sum_p W_{op} e_p\Big)^\top J e_o,

where `o` are all other coordinates: `(n − 1) d` of them by translations alone, whose pivots are the
last point's, and `d (d − 1) / 2` fewer by rotations. That holds for any pivots, so they are
constants to a derivative, and what is made of them can be differentiated any number of times.

Features beside the positions neither move nor turn: their entries of `W` and `V` are zero, and each
of them is one more of the `o`.

Pivots of rotations are picked by size. Coincident points, points on a line and others that a
rotation leaves in place have fewer; so have those that one moves by very little, to which the
division by the pivot would bring their rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from eqflow.geometry import Segments

# Least size of a pivot in units of the largest: dividing by it costs little more than one digit.
LEAST_PIVOT = 1 / 16
# Bytes of the largest temporary. On a CPU larger ones pay only where the allocator keeps freed
# memory, and cost twice as much where it hands it back to the system. A GPU's is on paper.
CPU_BUDGET = 2**20
GPU_BUDGET = 2**29


def at_once(x: Tensor, numbers: int) -> int:
    """How many directions, each with a temporary of so many numbers like `x`, go together."""
    budget = GPU_BUDGET if x.is_cuda else CPU_BUDGET
    return max(budget // max(numbers * x.element_size(), 1), 1)


class Directions:
    """Coordinates along which `J` is asked for, and what makes a trace of its columns.

    Args:
        x: State, shape (N, d + features).
        clouds: Rows of each cloud.
        rotations: Whether the field turns with its state; on a GPU the decision on ranks makes the
            host wait.
        features: Number of last columns of the state that are no positions.

    Attributes:
        count: Number of directions S, the largest of any cloud.
    """

    def __init__(
        self, x: Tensor, clouds: Segments, *, rotations: bool = False, features: int = 0
    ) -> None:
        self._clouds = clouds
        self._x = x
        self._dimension = x.shape[1] - features
        points = torch.arange(clouds.longest, device=x.device).unsqueeze(1)
        final = (clouds.lengths - 1)[:, None, None]
        is_position = torch.arange(x.shape[1], device=x.device) < self._dimension
        self._is_given = (points == final) & is_position  # (B, L, d + K)
        free = ((points < final) | ((points == final) & ~is_position)).flatten(1)
        self._turns = None
        self.count = max(clouds.longest - 1, 0) * self._dimension + clouds.longest * features
        self._columns = torch.arange(self.count, device=x.device).expand(clouds.count, -1)
        turning = rotations and clouds.longest > 1 and self._dimension > 1
        if turning:
            self._turns = _Turns.of(self._from_last(x), features)
            free = free & ~self._turns.at_pivots
            self.count = int(free.sum(1).max())
        if turning or features:
            self._columns = (~free).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.count]
        self._asked = free.gather(1, self._columns)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Directions and the covectors to multiply `J` by there, in equal parts of at most `size`.

        Yields:
            `e_o` and what stands before `J e_o` in the trace, each of the shape (N, S', d + K) and
            zero in clouds that have fewer than others.
        """
        parts = -(-self.count // size)
        for part in range(parts):
            some = slice(part * self.count // parts, (part + 1) * self.count // parts)
            yield self._block(self._columns[:, some], self._asked[:, some])

    def known(self, velocity: Tensor) -> Tensor:
        """What the symmetry says of the trace, given the velocity (N, d + K), shape (B,)."""
        if self._turns is None:
            return velocity.new_zeros(self._clouds.count)
        return self._turns.known(self._from_last(velocity))

    def _from_last(self, x: Tensor) -> Tensor:
        """Positions relative to the last of their cloud, zero in the padding, shape (B, L, d)."""
        x = x[:, : self._dimension]
        return self._clouds.to_dense(x - self._clouds.expand(x[self._clouds.ptr[1:] - 1]))

    def _block(self, columns: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self._clouds.longest, self._x.shape[1])
        places = torch.arange(math.prod(shape), device=columns.device)
        here = (places == columns.unsqueeze(2)) & asked.unsqueeze(2)
        tangents = here.to(self._x.dtype)  # (B, S', L (d + K))
        covectors = tangents
        if self._turns is not None:
            covectors = covectors - self._turns.given_by(columns) * asked.unsqueeze(2)
        covectors = covectors.unflatten(2, shape)
        is_given = self._is_given.unsqueeze(1).to(self._x.dtype)
        covectors = covectors - is_given * covectors.sum(2, keepdim=True)
        return self._packed(tangents.unflatten(2, shape)), self._packed(covectors)

    def _packed(self, dense: Tensor) -> Tensor:
        """(B, S', L, d + K) to (N, S', d + K)."""
        return self._clouds.from_dense(dense.transpose(1, 2))


@dataclass
class _Turns:
    """Rotations combined so that each moves one pivot by 1 and the others not at all.

    Attributes:
        pivots: A coordinate for each of the m rotations, shape (B, m).
        picked: Rotations in the order of their pivots, shape (B, m).
        kept: Which of them count, shape (B, m).
        combination: The inverse of the rows at the pivots, shape (B, m, m).
        moved: `W`, zero where a rotation does not count, shape (B, L (d + K), m).
        features: Number K of columns beside the positions.
    """

    pivots: Tensor
    picked: Tensor
    kept: Tensor
    combination: Tensor
    moved: Tensor
    features: int

    @classmethod
    def of(cls, x: Tensor, features: int) -> _Turns:
        """Of points relative to the last of their cloud, shape (B, L, d)."""
        turned = _turned(x, features)
        pivots, picked, kept = _pivots(turned)
        turned = _columns(turned, picked)
        both = kept.unsqueeze(1) & kept.unsqueeze(2)
        identity = torch.eye(turned.shape[2], dtype=x.dtype, device=x.device)
        # No solver has half precision.
        matrix = torch.where(both, _rows(turned, pivots), identity)
        precision = x.dtype if x.dtype.itemsize > 2 else torch.float32
        combination = torch.linalg.inv(matrix.to(precision)).to(x.dtype)
        turned = torch.where(kept.unsqueeze(1), turned, torch.zeros_like(turned))
        return cls(pivots, picked, kept, combination, turned @ combination, features)

    @property
    def at_pivots(self) -> Tensor:
        """Which coordinates are pivots that count, shape (B, L (d + K))."""
        return self._at_pivot().any(1)

    def given_by(self, columns: Tensor) -> Tensor:
        """`Σ_p W_op e_p` of some coordinates `o` (B, S), shape (B, S, L (d + K))."""
        return _rows(self.moved, columns) @ self._at_pivot().to(self.moved.dtype)

    def known(self, velocity: Tensor) -> Tensor:
        """`Σ_p V_pp` of velocities relative to the last of their cloud, (B, L, d) to (B,)."""
        turned = _columns(_turned(velocity, self.features), self.picked)
        turned = _rows(turned, self.pivots)
        both = self.kept.unsqueeze(1) & self.kept.unsqueeze(2)
        turned = torch.where(both, turned, torch.zeros_like(turned))
        return (turned * self.combination.transpose(1, 2)).sum((1, 2))

    def _at_pivot(self) -> Tensor:
        places = torch.arange(self.moved.shape[1], device=self.pivots.device)
        return (places == self.pivots.unsqueeze(2)) & self.kept.unsqueeze(2)  # (B, m, L w)


def _turned(x: Tensor, features: int) -> Tensor:
    """`Ω x` for each plane of rotation, zero for features, (B, L, d) to (B, L (d + K), m)."""
    B, L, d = x.shape
    moved = (x @ _generators(d, x.dtype, x.device)).reshape(B, L, d, -1)
    return pad(moved, (0, 0, 0, features)).reshape(B, L * (d + features), -1)


@lru_cache(maxsize=16)
def _generators(d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`Ωᵀ` of each plane of rotation side by side, shape (d, d m)."""
    a, b = torch.triu_indices(d, d, 1)
    planes = torch.arange(len(a))
    generators = torch.zeros(d, d, len(a), dtype=dtype)
    generators[b, a, planes] = 1
    generators[a, b, planes] = -1
    return generators.reshape(d, -1).to(device)


@torch.no_grad()
def _pivots(turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian elimination with complete pivoting of (B, R, m): rows, columns, which count."""
    clouds = torch.arange(len(turned), device=turned.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    first = kept = None
    for _ in range(turned.shape[2]):
        largest, place = turned.abs().flatten(1).max(1)
        row, column = place // turned.shape[2], place % turned.shape[2]
        first = largest if first is None else first
        sizeable = largest > LEAST_PIVOT * first
        # What follows a small pivot was made by dividing by it.
        kept = sizeable if kept is None else kept & sizeable
        found.append((row, column, kept))
        share = turned[clouds, row] / turned[clouds, row, column].unsqueeze(1)
        turned = turned - turned[clouds, :, column].unsqueeze(2) * share.unsqueeze(1)
    rows, columns, counted = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    return rows, columns, counted


def _rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, K) of matrices (B, R, m), shape (B, K, m)."""
    return matrix.gather(1, rows.unsqueeze(2).expand(-1, -1, matrix.shape[2]))


def _columns(matrix: Tensor, columns: Tensor) -> Tensor:
    """Columns (B, K) of matrices (B, R, m), shape (B, R, K)."""
    return matrix.gather(2, columns.unsqueeze(1).expand(-1, matrix.shape[1], -1))
