r"""Finite groups as data: orthogonal matrices that move space, permutations that reorder points.

An element acts on a cloud of points by `x_i ↦ R x_i` and by bringing point `i` to place `p(i)`. The
two commute, so their pairs are a group as well, the direct product. `matrix_group` and
`permutation_group` take elements, `generated` makes all from a few; groups with a name are those of
`eqflow.nn.averaging.named_groups`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.errors import ShapeError, UsageError
from eqflow.nn.averaging.closure import CLOSE, CLOSER, LARGEST_ORDER, closed, polar, vectors


@dataclass(frozen=True, eq=False)
class FiniteGroup:
    """A group of G elements.

    Attributes:
        name: What it is called.
        matrices: Orthogonal matrices R, shape (G, d, d), float64, or None where none moves space.
        permutations: The place p(i) that point `i` is brought to, shape (G, n), int64, or None
            where no point changes its place.

    >>> mirror = matrix_group(torch.tensor([[[1.0]], [[-1.0]]]), "mirror")
    >>> swap = permutation_group(torch.tensor([[0, 1], [1, 0]]), "swap")
    >>> (mirror * swap).order
    4
    """

    name: str
    matrices: Tensor | None = None
    permutations: Tensor | None = None

    @property
    def order(self) -> int:
        """Number of elements, G."""
        for part in (self.matrices, self.permutations):
            if part is not None:
                return len(part)
        return 1

    @property
    def dimension(self) -> int | None:
        """Number of coordinates d, or None for any."""
        return None if self.matrices is None else self.matrices.shape[-1]

    @property
    def points(self) -> int | None:
        """Number of points n that a cloud must have, or None for any."""
        return None if self.permutations is None else self.permutations.shape[-1]

    def __mul__(self, other: FiniteGroup) -> FiniteGroup:
        """The group of all products of an element of one and an element of the other.

        Raises:
            UsageError: If these are not a group, as of rotations about two axes at random.
            ShapeError: If they act in different dimensions or on different numbers of points.
        """
        if not isinstance(other, FiniteGroup):
            return NotImplemented
        for what in ("dimension", "points"):
            mine, others = getattr(self, what), getattr(other, what)
            if None not in (mine, others) and mine != others:
                raise ShapeError(
                    f"group: {self.name} has {what} {mine}, but {other.name} has {others}; "
                    "expected the same in a product."
                )
        name = f"{self.name} × {other.name}"
        first, second = _completed(self, other), _completed(other, self)
        matrices = permutations = None
        if first.matrices is not None and second.matrices is not None:
            matrices = torch.einsum("gij,hjk->ghik", first.matrices, second.matrices).flatten(0, 1)
        if first.permutations is not None and second.permutations is not None:
            permutations = first.permutations[:, second.permutations].flatten(0, 1)
        if (self.points is None and other.dimension is None) or (
            self.dimension is None and other.points is None
        ):
            return FiniteGroup(name, matrices, permutations)
        elements = vectors(matrices, permutations)
        first_alike = (torch.cdist(elements, elements) < CLOSE).int().argmax(1)
        kept = first_alike == torch.arange(len(elements))
        return _closed(
            name,
            None if matrices is None else matrices[kept],
            None if permutations is None else permutations[kept],
        )


def _closed(name: str, matrices: Tensor | None, permutations: Tensor | None) -> FiniteGroup:
    return FiniteGroup(name, closed(matrices, permutations), permutations)


def _completed(group: FiniteGroup, other: FiniteGroup) -> FiniteGroup:
    """`group` with identities in place of a part that it lacks and the other has."""
    matrices, permutations = group.matrices, group.permutations
    if matrices is None and other.dimension is not None:
        matrices = torch.eye(other.dimension, dtype=torch.float64).repeat(group.order, 1, 1)
    if permutations is None and other.points is not None:
        permutations = torch.arange(other.points).repeat(group.order, 1)
    return FiniteGroup(group.name, matrices, permutations)


def matrix_group(matrices: Tensor, name: str = "matrices") -> FiniteGroup:
    """The group of given orthogonal matrices, which have to be closed under products.

    Args:
        matrices: All elements in any order, shape (G, d, d), right to four digits: they are
            polished to the group they stand for, exact to 1e-15.

    Raises:
        ShapeError: If `matrices` are not of shape (G, d, d).
        UsageError: If one is not orthogonal, two are the same, or a product is missing.

    >>> matrix_group(torch.tensor([[[1.0]], [[-1.0]]])).order
    2
    """
    if matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2] or matrices.numel() == 0:
        raise ShapeError(
            f"group: found matrices of shape {tuple(matrices.shape)}, expected (G, d, d)."
        )
    return _closed(name, _orthogonal(matrices), None)


def permutation_group(permutations: Tensor, name: str = "permutations") -> FiniteGroup:
    """The group of given permutations, which have to be closed under composition.

    Args:
        permutations: The place that each of n points is brought to, shape (G, n), int64.

    Raises:
        ShapeError: If `permutations` are not of shape (G, n) and int64.
        UsageError: If one is no permutation, two are the same, or a product is missing.
    """
    if permutations.dim() != 2 or permutations.numel() == 0 or permutations.dtype != torch.int64:
        raise ShapeError(
            f"group: found permutations of shape {tuple(permutations.shape)} and "
            f"{permutations.dtype}, expected (G, n) of torch.int64."
        )
    permutations = permutations.cpu()
    wrong = (permutations.sort(1).values != torch.arange(permutations.shape[1])).any(1)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise UsageError(
            f"group: element {first}, {permutations[first].tolist()}, is no permutation of 0 to "
            f"{permutations.shape[1] - 1}."
        )
    return _closed(name, None, permutations)


def generated(generators: Tensor, name: str = "generated") -> FiniteGroup:
    """The group of all products of a few orthogonal matrices.

    Args:
        generators: Shape (g, d, d), right to six digits.

    Raises:
        ShapeError: If `generators` are not of shape (g, d, d).
        UsageError: If one is not orthogonal, or there are more than 1000 products, as there are
            for a rotation by an angle that is no rational part of a turn.

    >>> quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    >>> generated(quarter).order
    4
    """
    if generators.dim() != 3 or generators.shape[1] != generators.shape[2]:
        raise ShapeError(
            f"group: found generators of shape {tuple(generators.shape)}, expected (g, d, d)."
        )
    generators = _orthogonal(generators)
    found = newest = torch.eye(generators.shape[1], dtype=torch.float64).unsqueeze(0)
    while len(newest):
        products = torch.einsum("gij,hjk->ghik", newest, generators).flatten(0, 1)
        before = len(found)
        for product in polar(products):
            if not bool(((found - product).norm(dim=(1, 2)) < CLOSER).any()):
                found = torch.cat([found, product.unsqueeze(0)])
        newest = found[before:]
        if len(found) > LARGEST_ORDER:
            raise UsageError(
                f"group: found more than {LARGEST_ORDER} products of the {len(generators)} "
                "generators, expected a finite group. Check their angles, or use HaarAverage."
            )
    return _closed(name, found, None)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Matrices in float64, moved to the nearest orthogonal ones; refused where those are far."""
    matrices = matrices.detach().cpu().double()
    gram = matrices.mT @ matrices - torch.eye(matrices.shape[1], dtype=torch.float64)
    wrong = ~(gram.abs().amax((1, 2)) < CLOSE) if matrices.numel() else gram.new_zeros(0).bool()
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise UsageError(
            f"group: matrix {first}, {matrices[first].tolist()}, is not orthogonal, expected "
            f"RᵀR = 1 to {CLOSE:g}. A group of other matrices has no average of this kind."
        )
    return polar(matrices)
