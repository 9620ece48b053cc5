r"""How the output of a function moves when its input does.

An output of `k` columns moves by `y ↦ D(R) y`, a point also by the translation `t`:

- `"scalar"`: `D = 1`, any `k`;
- `"vector"`: `D = R`, `k = d`;
- `"point"`: `y ↦ R y + t`, `k = d`;
- `"tensor(2)"`, of any order m: `D = R ⊗ … ⊗ R`, `k = d^m`, the last index fastest;
- irreps of O(3) in e3nn's notation, such as `"1x0e+1x1o"`: `D` block by block. e3nn orders the axes
  of `1o` as (x, y, z), so `1o` is a vector, and `1e` a pseudovector such as an angular momentum.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError

if TYPE_CHECKING:
    import e3nn.o3


# Most columns of a Cartesian tensor: a matrix of their square is made for every pose.
LARGEST = 1000


@dataclass(frozen=True)
class Representation:
    """One way for an output to move.

    Attributes:
        name: What the caller asked for.
        columns: Number of columns such an output has, or None where any number will do.
        matrices: Rotations (B, d, d) to the matrices `D` of the outputs, (B, k, k), or None for 1.
            Differentiable.
        translates: Whether the output is a position.
    """

    name: str
    columns: int | None = None
    matrices: Callable[[Tensor], Tensor] | None = None
    translates: bool = False

    def act(
        self, values: Tensor, rotation: Tensor, translation: Tensor | None, owner: Tensor
    ) -> Tensor:
        """Moved outputs.

        Args:
            values: Outputs, shape (M, k).
            rotation: Orthogonal matrices, shape (B, d, d).
            translation: Shifts, shape (B, d), or None for none.
            owner: The matrix and the shift that move each row, shape (M,).

        Returns:
            Shape (M, k).
        """
        if self.matrices is not None:
            matrix = self.matrices(rotation).index_select(0, owner)
            values = torch.einsum("mij,mj->mi", matrix, values)
        if self.translates and translation is not None:
            values = values + translation.index_select(0, owner)
        return values


def representation(output: str | e3nn.o3.Irreps, dimension: int) -> Representation:
    """The representation called `output`, for clouds of `dimension` d.

    Raises:
        UsageError: If there is none of that name, or irreps are asked for where d is not 3.
    """
    named = {
        "scalar": Representation("scalar"),
        "vector": Representation("vector", dimension, _itself),
        "point": Representation("point", dimension, _itself, translates=True),
    }
    if isinstance(output, str) and output in named:
        return named[output]
    tensor = re.fullmatch(r"tensor\((\d+)\)", output) if isinstance(output, str) else None
    if tensor is not None:
        order = int(tensor[1])
        if dimension**order > LARGEST:
            raise UsageError(
                f"output: {output} has {dimension}^{order} columns, expected at most {LARGEST}. "
                "Use the irreps that you need of it."
            )
        return Representation(str(output), dimension**order, partial(_tensor_power, order=order))
    from e3nn import o3

    try:
        irreps = o3.Irreps(output)
        if irreps.dim == 0:
            raise ValueError("no irreps at all")
    except (ValueError, TypeError, AttributeError) as error:
        known = (*named, "tensor(2)")
        near = get_close_matches(str(output), known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"output: found {output!r}, expected {', '.join(map(repr, known))} or irreps "
            f"such as '1x0e+1x1o'.{hint}"
        ) from error
    if dimension != 3:
        raise UsageError(
            f"output: irreps {irreps} are those of O(3), but the clouds have dimension "
            f"{dimension}. Use 'scalar', 'vector', 'point' or 'tensor(2)'."
        )
    return Representation(str(irreps), irreps.dim, partial(_irrep_matrices, irreps))


def _itself(rotation: Tensor) -> Tensor:
    return rotation


def _tensor_power(rotation: Tensor, order: int) -> Tensor:
    """Kronecker powers of matrices, (B, d, d) to (B, d^m, d^m)."""
    count = len(rotation)
    power = rotation.new_ones(count, 1, 1)
    for _ in range(order):
        size = power.shape[-1] * rotation.shape[-1]
        power = torch.einsum("bij,bkl->bikjl", power, rotation).reshape(count, size, size)
    return power


def _irrep_matrices(irreps: e3nn.o3.Irreps, rotation: Tensor) -> Tensor:
    """Block-diagonal matrices of `irreps`, (B, 3, 3) to (B, k, k).

    e3nn's own `D_from_matrix` goes through Euler angles and is off by 1e-6 in float64. Here each
    block is read off the spherical harmonics, `Y(R p) = D(R) Y(p)`, at enough directions `p`: the
    error is 1e-14.
    """
    from e3nn import o3

    sign = torch.sign(torch.linalg.det(rotation))
    proper = rotation * sign[:, None, None]
    source = rng.generator(0, "representations", "directions", device=rotation.device)
    direction = rng.normal((8 * (irreps.lmax + 1), 3), rotation, source)
    moved = torch.einsum("bij,nj->bni", proper, direction)
    blocks = []
    for multiplicity, irrep in irreps:
        before = o3.spherical_harmonics(irrep.l, direction, normalize=True)
        after = o3.spherical_harmonics(irrep.l, moved, normalize=True)
        block = (torch.linalg.pinv(before) @ after).mT
        if irrep.p == -1:
            block = block * sign[:, None, None]
        blocks += [block] * multiplicity
    return _block_diagonal(blocks, len(rotation), rotation)


def _block_diagonal(blocks: list[Tensor], count: int, like: Tensor) -> Tensor:
    """Matrices (B, k_1, k_1), (B, k_2, k_2), … to one (B, k, k) with them along its diagonal."""
    size = sum(block.shape[-1] for block in blocks)
    rows, start = [], 0
    for block in blocks:
        end = start + block.shape[-1]
        rows.append(torch.nn.functional.pad(block, (start, size - end)))
        start = end
    return torch.cat(rows, -2) if rows else like.new_zeros(count, 0, 0)
