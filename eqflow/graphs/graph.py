"""A graph with features and labels of its nodes, and how the nodes are divided for training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, ShapeError
from eqflow.graphs.rows import Rows


@dataclass(frozen=True)
class Split:
    """Which nodes are trained on, which choose the best weights, and which are for the last figure.

    Attributes:
        train, validation, test: Masks of nodes, shape (N,), bool; no node is in two of them.
        name: What the split is called where it comes from.

    Raises:
        ShapeError: If a mask is of another shape or type.
        DataError: If a node is in two parts.
        EmptyData: If a part has no node.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    name: str = "split"

    def __post_init__(self) -> None:
        parts = self.parts
        for name, mask in parts.items():
            if mask.dtype != torch.bool or mask.shape != self.train.shape or mask.dim() != 1:
                raise ShapeError(
                    f"split {self.name}: found a {name} mask {tuple(mask.shape)} of {mask.dtype}, "
                    f"expected {tuple(self.train.shape)} of torch.bool, one entry a node."
                )
        counts = {name: int(mask.sum()) for name, mask in parts.items()}
        shared = sum(mask.long() for mask in parts.values()) > 1
        if shared.any():
            raise DataError(
                f"split {self.name}: node {int(shared.nonzero()[0])} and {int(shared.sum()) - 1} "
                "others are in two parts, expected each in one: figures of such a split say "
                "nothing. Take it out of all masks but one."
            )
        if not all(counts.values()):
            raise EmptyData(
                f"split {self.name}: found {counts} nodes, expected at least one in each part."
            )

    @property
    def parts(self) -> dict[str, Tensor]:
        """The masks by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def to(self, device: torch.device | str) -> Split:
        """The same split on a device."""
        return Split(*(mask.to(device) for mask in self.parts.values()), self.name)


@dataclass(frozen=True)
class Graph:
    """Nodes with features and labels, and the edges between them.

    Attributes:
        x: Features, shape (N, F), floating point; dense, or sparse in CSR where most are zero, as a
            bag of words is.
        edges: Who talks to whom, as read: no self loops have been added.
        y: Class of each node, shape (N,), int64, from 0; −1 where it is not known.
        encoding: Positional encoding, shape (N, P), or None.
        splits: Ways to divide the nodes that came with the data.
        name: Of the data set.

    Raises:
        ShapeError: If a part does not have one row a node, or is of another type.
        DataError: If a feature is not finite, a label below −1, or a node of a split without label.
    """

    x: Tensor
    edges: Edges
    y: Tensor
    encoding: Tensor | None = None
    splits: tuple[Split, ...] = ()
    name: str = "graph"

    def __post_init__(self) -> None:
        n = self.edges.nodes
        rows = {"x": self.x, "y": self.y, "encoding": self.encoding}
        rows |= {f"split {split.name}": split.train for split in self.splits}
        for part, values in rows.items():
            if values is not None and (values.dim() == 0 or len(values) != n):
                raise ShapeError(
                    f"{self.name}: found {part} of shape {tuple(values.shape)}, expected one row "
                    f"for each of the {n} nodes."
                )
        if self.x.dim() != 2 or not self.x.is_floating_point() or self.y.dtype != torch.int64:
            raise ShapeError(
                f"{self.name}: found x {tuple(self.x.shape)} of {self.x.dtype} and y of "
                f"{self.y.dtype}, expected x (N, F) of floating point and y of torch.int64."
            )
        if self.x.layout not in (torch.strided, torch.sparse_csr):
            raise ShapeError(
                f"{self.name}: found x with the layout {self.x.layout}, expected a dense matrix or "
                "a CSR one. Call x.to_sparse_csr()."
            )
        if self.encoding is not None and (
            self.encoding.dim() != 2 or not self.encoding.is_floating_point()
        ):
            raise ShapeError(
                f"{self.name}: found an encoding {tuple(self.encoding.shape)} of "
                f"{self.encoding.dtype}, expected (N, P) of floating point."
            )
        for part, values in (("x", self.x), ("encoding", self.encoding)):
            if values is not None:
                self._require_finite(part, values)
        if (self.y < -1).any():
            raise DataError(
                f"{self.name}: found label {int(self.y.min())}, expected classes from 0, or −1 "
                "where one is not known."
            )
        for split in self.splits:
            self._require_labels(split)

    def _require_finite(self, part: str, values: Tensor) -> None:
        sparse = values.layout is torch.sparse_csr
        finite = (values.values() if sparse else values).isfinite()
        if not finite.all():
            if sparse:
                entries = (~finite).nonzero().squeeze(1)
                broken = torch.searchsorted(values.crow_indices(), entries, right=True) - 1
            else:
                broken = (~finite).nonzero()[:, 0]
            broken = broken.unique()
            raise DataError(
                f"{self.name}: {part} of node {int(broken[0])} (and of {len(broken) - 1} others) "
                "is not finite. Mend or remove these nodes."
            )

    def _require_labels(self, split: Split) -> None:
        for part, mask in split.parts.items():
            unknown = (mask & (self.y < 0)).nonzero().squeeze(1)
            if len(unknown):
                raise DataError(
                    f"{self.name}: {part} of split {split.name} has node {int(unknown[0])} and "
                    f"{len(unknown) - 1} others without a label (−1), expected a class for each "
                    "node of a split. Take these nodes out of it."
                )

    @property
    def nodes(self) -> int:
        """Number of nodes, N."""
        return self.edges.nodes

    @property
    def features(self) -> int:
        """Width of the features, F."""
        return self.x.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes: one more than the largest label."""
        return int(self.y.max()) + 1 if len(self.y) else 0

    @cached_property
    def feature_rows(self) -> Rows:
        """The features, to be multiplied by weights."""
        return Rows(self.x)

    @cached_property
    def encoding_rows(self) -> Rows | None:
        """The positional encoding, to be multiplied by weights."""
        return None if self.encoding is None else Rows(self.encoding)

    def with_edges(self, edges: Edges) -> Graph:
        """The same nodes, joined otherwise."""
        return replace(self, edges=edges)

    def with_encoding(self, encoding: Tensor | None) -> Graph:
        """The same graph with another positional encoding."""
        return replace(self, encoding=encoding)

    def __repr__(self) -> str:
        return (
            f"Graph({self.name}: {self.nodes:,} nodes, {self.edges.count:,} directed edges, "
            f"{self.features:,} features, {self.classes} classes, {len(self.splits)} splits)"
        )
