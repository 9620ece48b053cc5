"""Bonds read off distances: each pair of atoms has the highest order whose length it is below.

Nothing but the distance of the two atoms and their elements counts, so that an aromatic ring,
whose bonds are between single and double ones, comes out as single bonds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from eqflow.chem.convert import to_rdkit
from eqflow.chem.elements import LARGEST, is_possible_charge
from eqflow.edges import Edges, segment_sum
from eqflow.errors import UnknownElement, UsageError
from eqflow.evaluate.bond_tables import PUBLISHED, BondTable
from eqflow.evaluate.distances import pairs
from eqflow.geometry import Clouds

if TYPE_CHECKING:
    import rdkit.Chem

# Pairs of atoms looked at in one go: bounds the memory, whatever the number of molecules.
PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True, eq=False)
class Bonds:
    """The bonds of some molecules.

    Attributes:
        clouds: The molecules: positions (N, 3) in Å, float64 on the CPU; 0 for what is no element,
            and for a charge that none can have.
        between: Rows of the atoms of each bond, shape (P, 2), the lower one first.
        orders: Order of each bond, 1 to 3, shape (P,).
        table: What they were read with.
    """

    clouds: Clouds
    between: Tensor
    orders: Tensor
    table: BondTable

    @cached_property
    def numbers(self) -> Tensor:
        """Atomic number of each atom, shape (N,)."""
        return atoms_of(self.clouds)

    @cached_property
    def owner(self) -> Tensor:
        """Molecule of each bond, shape (P,)."""
        return self.clouds.segments.ids[self.between[:, 0]]

    @cached_property
    def edges(self) -> Edges:
        """The bonds as a graph, each in both directions: 2 P edges."""
        both = torch.cat([self.between.flip(1), self.between])
        return Edges.from_index(both.T, len(self.numbers), self.clouds.ptr)

    @cached_property
    def valences(self) -> Tensor:
        """Sum of the orders of each atom's bonds, shape (N,)."""
        return segment_sum(self.orders.repeat(2)[self.edges.order], self.edges)

    @cached_property
    def lengths(self) -> Tensor:
        """Length of each bond in Å, shape (P,)."""
        return (self.clouds.x[self.between[:, 0]] - self.clouds.x[self.between[:, 1]]).norm(dim=1)

    @cached_property
    def judged(self) -> Tensor:
        """Whether the table has a word on a molecule, shape (B,).

        It has none on one without atoms, with positions that are not finite, or with an element it
        does not know.
        """
        good = self.clouds.x.isfinite().all(1) & self.table.known[self.numbers]
        bad = self.clouds.segments.sum((~good).long())
        return (bad == 0) & (self.clouds.sizes > 0)

    def to_rdkit(self) -> Iterator[rdkit.Chem.Mol]:
        """RDKit molecules with these bonds and known charges; not sanitized, no atom is added.

        Positions that are not finite become 0.
        """
        from rdkit import Chem

        kinds = {order: Chem.BondType.values[order] for order in (1, 2, 3)}
        still = replace(self.clouds, x=self.clouds.x.nan_to_num(0, 0, 0))
        counts = torch.bincount(self.owner, minlength=len(still)).tolist()
        local = self.between - still.ptr[self.owner].unsqueeze(1)
        rows = torch.cat([local, self.orders.unsqueeze(1)], 1)
        for atoms, own in zip(to_rdkit(still), rows.split(counts), strict=True):
            molecule = Chem.RWMol(atoms)
            for one, other, order in own.tolist():
                molecule.AddBond(one, other, kinds[order])
            yield molecule.GetMol()


def bonds_of(clouds: Clouds, table: BondTable = PUBLISHED) -> Bonds:
    """Bonds of molecules by their distances.

    Args:
        clouds: Molecules, positions in Å.
        table: Lengths, margins and valences.

    Raises:
        UnknownElement: If the clouds have no elements at all.
        UsageError: If they have more than three dimensions.

    >>> water = Clouds(
    ...     torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]),
    ...     torch.tensor([0, 3]),
    ...     torch.tensor([8, 1, 1]),
    ... )
    >>> bonds_of(water).valences.tolist()
    [2, 1, 1]
    """
    numbers = atoms_of(clouds)
    if clouds.dimension > 3:
        raise UsageError(
            f"molecules: found {clouds.dimension} dimensions, expected at most 3, as atoms have."
        )
    outside = (numbers < 1) | (numbers > LARGEST)
    numbers = torch.where(outside, 0, numbers).cpu()
    charges = None if clouds.charges is None else clouds.charges.cpu()
    if charges is not None:
        possible = torch.from_numpy(is_possible_charge(numbers.numpy(), charges.numpy()))
        charges = torch.where(possible, charges, 0)
    clouds = replace(
        clouds.to("cpu"),
        x=pad(clouds.x.detach().cpu().double(), (0, 3 - clouds.dimension)),
        numbers=numbers,
        charges=charges,
    )
    found = [_bonded(clouds, start, end, table) for start, end in _groups(clouds)]
    between = torch.cat([torch.zeros(0, 2, dtype=torch.int64), *(pair for pair, _ in found)])
    orders = torch.cat([torch.zeros(0, dtype=torch.int64), *(order for _, order in found)])
    return Bonds(clouds, between, orders, table)


def atoms_of(clouds: Clouds) -> Tensor:
    """Atomic numbers of molecules, shape (N,).

    Raises:
        UnknownElement: If the clouds have none.
    """
    if clouds.numbers is None:
        raise UnknownElement(
            "molecules: found points without elements, expected atoms. Metrics of molecules need "
            "atomic numbers; eqflow.evaluate.distances compares point clouds."
        )
    return clouds.numbers


def _groups(clouds: Clouds) -> list[tuple[int, int]]:
    """First and last molecule, exclusive, of groups of about `PAIRS_AT_ONCE` pairs each."""
    count = torch.cumsum(clouds.sizes * (clouds.sizes - 1) // 2, 0)
    group = count // PAIRS_AT_ONCE
    lengths = torch.unique_consecutive(group, return_counts=True)[1]
    ends = torch.cumsum(lengths, 0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def _bonded(clouds: Clouds, start: int, end: int, table: BondTable) -> tuple[Tensor, Tensor]:
    first_row = int(clouds.ptr[start])
    every = pairs(clouds[start:end]) + first_row
    one, other = every.unbind(1)
    distance = (clouds.x[one] - clouds.x[other]).norm(dim=1)
    numbers = atoms_of(clouds)
    below = distance < table.limits[:, numbers[one], numbers[other]]
    orders = below.long().cumprod(0).sum(0)
    bonded = orders > 0
    return every[bonded], orders[bonded]
