"""Rows of numbers for each node, dense or sparse, and their products with weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from eqflow.edges import Edges, weighted_sum


@dataclass(frozen=True)
class Rows:
    """A matrix with a row a node, many of whose entries may be zero.

    A sparse one is a graph from its columns to its rows, so its product with weights is a sum over
    edges, and costs its entries alone; dropout draws for these alone, too.

    Attributes:
        matrix: Shape (N, F), dense or CSR; a constant to any derivative.
    """

    matrix: Tensor

    @property
    def is_sparse(self) -> bool:
        """Whether the entries are those of a CSR matrix."""
        return self.matrix.layout is torch.sparse_csr

    @cached_property
    def edges(self) -> Edges:
        """From column `f`, as node `N + f`, to each row that has an entry there."""
        rows, columns = self.matrix.shape
        lengths = self.matrix.crow_indices().diff()
        receiver = torch.arange(rows, device=lengths.device).repeat_interleave(lengths)
        pairs = torch.stack([self.matrix.col_indices() + rows, receiver])
        return Edges.from_index(pairs, rows + columns)

    def times(self, weight: Tensor, dropout: float = 0.0) -> Tensor:
        """The product with `weight` (F, C), shape (N, C).

        Args:
            weight: What to multiply by.
            dropout: Probability that an entry is left out, the others being `1 / (1 − p)` larger;
                drawn from torch's global generator.
        """
        entries = self.matrix.values() if self.is_sparse else self.matrix
        if dropout:
            entries = F.dropout(entries, dropout)
        entries = entries.to(weight.dtype)
        if not self.is_sparse:
            return entries @ weight
        rows = len(self.matrix)
        nothing = weight.new_zeros(rows, weight.shape[1])
        return weighted_sum(entries, torch.cat([nothing, weight]), self.edges)[:rows]
