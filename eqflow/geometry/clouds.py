"""Clouds: a batch of structures of any sizes, packed one after another as in PyTorch Geometric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqflow.errors import EmptyData, ShapeError
from eqflow.geometry.segments import Segments

if TYPE_CHECKING:
    import ase
    import rdkit.Chem
    import torch_geometric.data


@dataclass(frozen=True, eq=False, repr=False)
class Clouds:
    """Structures packed into one tensor of points.

    Attributes:
        x: Positions, shape (N, d), in the unit of the data set (Å for molecules).
        ptr: Start of each cloud and, last, N; shape (B + 1,), int64.
        numbers: Atomic numbers, shape (N,), int64, or None where points have no element.
        source: Where each cloud came from (`file:line`), for messages; empty where unknown.
        charges: Formal charges, shape (N,), int64, or None where no point is known to have one.
        properties: Numbers that are known of whole clouds, by name, each shape (B,), float64; NaN
            where one is not known.

    Raises:
        ShapeError: If the shapes or types do not fit each other.

    >>> two = Clouds(torch.zeros(5, 3), torch.tensor([0, 2, 5]))
    >>> len(two), two.sizes.tolist(), two[1].x.shape
    (2, [2, 3], torch.Size([3, 3]))
    """

    x: Tensor
    ptr: Tensor
    numbers: Tensor | None = None
    source: tuple[str, ...] = ()
    charges: Tensor | None = None
    properties: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.dim() != 2 or not self.x.is_floating_point():
            raise ShapeError(
                f"Clouds.x: found {tuple(self.x.shape)} of {self.x.dtype}, expected (N, d) floats."
            )
        if self.segments.rows != self.x.shape[0]:
            raise ShapeError(
                f"Clouds.ptr: ends at {self.segments.rows}, but x has {self.x.shape[0]} points."
            )
        for name, labels in (("numbers", self.numbers), ("charges", self.charges)):
            if labels is not None and (
                labels.shape != self.x.shape[:1] or labels.dtype != torch.int64
            ):
                raise ShapeError(
                    f"Clouds.{name}: found {tuple(labels.shape)} of {labels.dtype}, "
                    f"expected ({self.x.shape[0]},) of torch.int64."
                )
        if self.source and len(self.source) != len(self):
            raise ShapeError(
                f"Clouds.source: found {len(self.source)} entries for {len(self)} clouds."
            )
        for name, values in self.properties.items():
            if values.shape != (len(self),) or values.dtype != torch.float64:
                raise ShapeError(
                    f"Clouds.properties[{name!r}]: found {tuple(values.shape)} of {values.dtype}, "
                    f"expected ({len(self)},) of torch.float64."
                )

    @cached_property
    def segments(self) -> Segments:
        """Which points belong to which cloud."""
        return Segments(self.ptr)

    @property
    def dimension(self) -> int:
        """Number of coordinates of a point, d."""
        return self.x.shape[1]

    @property
    def sizes(self) -> Tensor:
        """Number of points of each cloud, shape (B,)."""
        return self.segments.lengths

    @property
    def h(self) -> Tensor:
        """Node features for tests and wrappers, (N, 1): the atomic number, or 0 without one."""
        if self.numbers is None:
            return self.x.new_zeros(self.x.shape[0], 1)
        return self.numbers.to(self.x.dtype).unsqueeze(1)

    @property
    def total_charges(self) -> Tensor:
        """Sum of the formal charges of each cloud, shape (B,), int64; 0 where none is known."""
        if self.charges is None:
            return torch.zeros_like(self.sizes)
        return self.segments.sum(self.charges)

    def values(self, name: str) -> Tensor:
        """A property of each cloud, shape (B,), float64; NaN where it is not known."""
        unknown = self.ptr.new_full((len(self),), math.nan, dtype=torch.float64)
        return self.properties.get(name, unknown)

    def __repr__(self) -> str:
        known = [
            name
            for name, labels in (("elements", self.numbers), ("charges", self.charges))
            if labels is not None
        ]
        known += self.properties
        points = f"{self.x.shape[0]} points in {self.dimension}-D"
        labelled = f", with {' and '.join(known)}" if known else ""
        return f"Clouds({len(self)} structures, {points}{labelled})"

    def __len__(self) -> int:
        return self.ptr.numel() - 1

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> Clouds:
        """Some of the clouds, in the order asked for."""
        every = torch.arange(len(self), device=self.ptr.device)
        if isinstance(which, int):
            chosen = every[which].unsqueeze(0)
        elif isinstance(which, slice):
            chosen = every[list(range(len(self))[which])]
        else:
            places = torch.as_tensor(which, device=self.ptr.device)
            chosen = every[places if places.numel() else places.long()]
        picked, rows = self.segments.select(chosen)
        return Clouds(
            self.x[rows],
            picked.ptr,
            None if self.numbers is None else self.numbers[rows],
            tuple(self.source[i] for i in chosen.tolist()) if self.source else (),
            None if self.charges is None else self.charges[rows],
            {name: values[chosen] for name, values in self.properties.items()},
        )

    def __iter__(self) -> Iterator[Clouds]:
        return (self[i] for i in range(len(self)))

    def to(self, *target: Any, **keywords: Any) -> Clouds:
        """The same clouds on another device, or with another float type for the positions."""
        x = self.x.to(*target, **keywords)
        return replace(
            self,
            x=x,
            ptr=self.ptr.to(x.device),
            numbers=None if self.numbers is None else self.numbers.to(x.device),
            charges=None if self.charges is None else self.charges.to(x.device),
            properties={name: values.to(x.device) for name, values in self.properties.items()},
        )

    def with_positions(self, x: Tensor) -> Clouds:
        """The same clouds at other positions, shape (N, d)."""
        return replace(self, x=x)

    @classmethod
    def from_dense(cls, x: Tensor, numbers: Tensor | None = None) -> Clouds:
        """Clouds of one size from positions of shape (B, n, d); `numbers` (n,) or (B, n)."""
        if x.dim() != 3:
            raise ShapeError(f"from_dense: found {tuple(x.shape)}, expected (B, n, d).")
        count, size, dimension = x.shape
        ptr = torch.arange(count + 1, device=x.device) * size
        if numbers is not None:
            numbers = numbers.to(torch.int64).expand(count, size).reshape(-1)
        return cls(x.reshape(count * size, dimension), ptr, numbers)

    @classmethod
    def join(cls, parts: Sequence[Clouds]) -> Clouds:
        """All clouds of several batches, in order.

        Where some batches have charges, the points of the others have charge 0: of a batch without
        charges no point is known to have one. Properties that a batch does not have are unknown.

        Raises:
            EmptyData: If there is no part.
            ShapeError: If parts differ in dimension or only some have elements.
        """
        if not parts:
            raise EmptyData("join: expected at least one batch of clouds, found none.")
        dimensions = {part.dimension for part in parts}
        if len(dimensions) > 1:
            raise ShapeError(f"join: found dimensions {sorted(dimensions)}, expected one.")
        known = [part.numbers for part in parts if part.numbers is not None]
        if known and len(known) < len(parts):
            raise ShapeError("join: some batches have elements and some have none.")
        charges = None
        if any(part.charges is not None for part in parts):
            charges = torch.cat(
                [
                    part.ptr.new_zeros(part.x.shape[0]) if part.charges is None else part.charges
                    for part in parts
                ]
            )
        sources = [part.source or ("",) * len(part) for part in parts]
        named = dict.fromkeys(name for part in parts for name in part.properties)
        return cls(
            torch.cat([part.x for part in parts]),
            Segments.of_lengths(torch.cat([part.sizes for part in parts])).ptr,
            torch.cat(known) if known else None,
            tuple(entry for source in sources for entry in source)
            if any(part.source for part in parts)
            else (),
            charges,
            {name: torch.cat([part.values(name) for part in parts]) for name in named},
        )

    # Conversions live with the formats they need, above this module; these are the doors to them.

    def write(self, path: str | Path) -> None:
        """Write to `.xyz .extxyz .sdf .npz .npy`, by the ending; see `eqflow.data.files`."""
        from eqflow.data.files import write

        write(self, path)

    def to_ase(self) -> list[ase.Atoms]:
        """One `ase.Atoms` a cloud; see `eqflow.chem.convert`."""
        from eqflow.chem.convert import to_ase

        return to_ase(self)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms | Sequence[ase.Atoms]) -> Clouds:
        """Clouds from one or several `ase.Atoms`; see `eqflow.chem.convert`."""
        from eqflow.chem.convert import from_ase

        return from_ase(atoms)

    def to_rdkit(self) -> list[rdkit.Chem.Mol]:
        """One RDKit molecule a cloud, with a conformer; see `eqflow.chem.convert`."""
        from eqflow.chem.convert import to_rdkit

        return to_rdkit(self)

    @classmethod
    def from_rdkit(cls, molecules: rdkit.Chem.Mol | Sequence[rdkit.Chem.Mol]) -> Clouds:
        """Clouds from RDKit molecules with a 3-D conformer; see `eqflow.chem.convert`."""
        from eqflow.chem.convert import from_rdkit

        return from_rdkit(molecules)

    def to_pyg(self) -> torch_geometric.data.Batch:
        """One `torch_geometric.data.Batch` with `pos`, `z`, `batch`; see `eqflow.data.pyg`."""
        from eqflow.data.pyg import to_pyg

        return to_pyg(self)

    @classmethod
    def from_pyg(cls, batch: torch_geometric.data.Batch) -> Clouds:
        """Clouds from a PyG `Batch` or `Data` with `pos` and, if there are elements, `z`."""
        from eqflow.data.pyg import from_pyg

        return from_pyg(batch)
