r"""Whether elements are a group, and the exact group that elements with rounding stand for.

An orthogonal matrix, or one beside a permutation, is looked up as a vector of its entries: all have
one length, so that the nearest is that of the largest product.

Matrices come with rounding, and products of them with more. A near-homomorphism is polished into an
exact one: :math:`\rho(g) \leftarrow \mathrm{polar}\; |G|^{-1} \sum_h \rho(gh) \rho(h)^\top`, whose
error squares in each step, where `polar` is the nearest orthogonal matrix.

Reference: On ε-representations (Kazhdan, 1982), Israel Journal of Mathematics 43, 315-323, where
near-homomorphisms are shown to be near to homomorphisms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqflow.errors import UsageError

# Matrices closer than this are one element that was rounded, to four digits if need be.
CLOSE = 1e-4
# Products of many factors come as close as that to each other in infinite groups: 710 radians are
# 113 turns and 6e-5.
CLOSER = 1e-5
LARGEST_ORDER = 1000
GOLDEN = (1 + math.sqrt(5)) / 2
ENTRIES = torch.tensor(
    [0.0, 0.5, 1.0, GOLDEN / 2, (GOLDEN - 1) / 2, math.sqrt(0.5), math.sqrt(0.75)],
    dtype=torch.float64,
)


def polar(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices of nearly orthogonal ones: `R ← R (3 − RᵀR) / 2`, to the end.

    Each step squares the error, and unlike a singular value decomposition adds none of its own.
    """
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    for _ in range(3):
        matrices = matrices - matrices @ (matrices.mT @ matrices - unit) / 2
    return matrices


def vectors(matrices: Tensor | None, permutations: Tensor | None) -> Tensor:
    """One vector for each element, all of one length, apart by the difference of the elements."""
    parts = [part.flatten(1).double() for part in (matrices, permutations) if part is not None]
    return torch.cat(parts, 1)


def closed(matrices: Tensor | None, permutations: Tensor | None) -> Tensor | None:
    """The matrices of a group, polished, once every product has been found among its elements.

    Args:
        matrices: Nearly orthogonal matrices, shape (G, d, d), float64, or None.
        permutations: Shape (G, n), int64, or None; not both are None.

    Raises:
        UsageError: If there are too many elements, a product is missing, or two are the same.
    """
    elements = vectors(matrices, permutations)
    count = len(elements)
    if count > LARGEST_ORDER:
        raise UsageError(
            f"group: found {count} elements, expected at most {LARGEST_ORDER}. A group of this "
            "size is sampled with HaarAverage rather than summed."
        )
    table = torch.empty(count, count, dtype=torch.int64)
    for g in range(count):
        products = vectors(
            None if matrices is None else matrices[g] @ matrices,
            None if permutations is None else permutations[g][permutations],
        )
        # Vectors of one length are nearest where their product is largest.
        table[g] = (products @ elements.T).argmax(1)
        missing = ~((products - elements[table[g]]).norm(dim=1) < CLOSE)
        if bool(missing.any()):
            h = int(missing.nonzero()[0])
            parts = [part for part in (matrices, permutations) if part is not None]
            values = [part[g] @ part[h] if part is matrices else part[g][part[h]] for part in parts]
            shown = " and ".join(str(_rounded(value)) for value in values)
            raise UsageError(
                f"group: the product of elements {g} and {h}, {shown}, is not among the {count} "
                "elements. Add it, or pass a few matrices to eqflow.nn.averaging.generated."
            )
        if len(torch.unique(table[g])) < count:
            first, second = _alike(elements)
            raise UsageError(f"group: elements {first} and {second} are the same. Leave one out.")
    return None if matrices is None else _polished(matrices, table)


def _rounded(value: Tensor) -> list:
    if value.dim() == 1:
        return value.tolist()
    return [[round(entry, 4) + 0.0 for entry in row] for row in value.tolist()]


def _alike(elements: Tensor) -> tuple[int, int]:
    near = (torch.cdist(elements, elements) < CLOSE).triu(1).nonzero()
    return int(near[0, 0]), int(near[0, 1])


def _polished(matrices: Tensor, table: Tensor) -> Tensor:
    """The homomorphism next to `matrices`, the entries of crystals and icosahedra to the digit."""
    for _ in range(4):
        means = [
            torch.einsum("hij,hkj->ik", matrices[products], matrices) / len(matrices)
            for products in table
        ]
        matrices = polar(torch.stack(means))
    nearest = ENTRIES[(matrices.abs().unsqueeze(-1) - ENTRIES).abs().argmin(-1)]
    nearest = torch.where(matrices < 0, -nearest, nearest)
    return torch.where((matrices - nearest).abs() < 4e-15, nearest, matrices) + 0.0
