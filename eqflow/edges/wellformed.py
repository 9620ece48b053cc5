"""What lists of edges have to be: no kernel looks whether an index is a node."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.errors import ShapeError
from eqflow.geometry.segments import Segments


def degrees_of_all_pairs(clouds: Segments) -> Tensor:
    """Edges that each node receives where all pairs of a cloud are joined, shape (N,)."""
    return (clouds.expand(clouds.lengths) - 1).clamp(min=0)


def require_graph(
    incoming: Segments, clouds: Segments, sender: Tensor | None, order: Tensor | None
) -> None:
    """Parts of an `Edges` fit each other.

    Raises:
        ShapeError: If they do not, an index is no node, or an edge joins two clouds.
    """
    if incoming.count != clouds.rows:
        raise ShapeError(
            f"Edges: found {incoming.count} segments of edges, expected one for each of the "
            f"{clouds.rows} nodes in clouds."
        )
    for name, part in (("sender", sender), ("order", order)):
        if part is not None and (part.shape != (incoming.rows,) or part.dtype != torch.int64):
            raise ShapeError(
                f"Edges: {name} is {tuple(part.shape)} of {part.dtype}, expected one number for "
                f"each of the {incoming.rows} edges, of torch.int64."
            )
    if sender is not None:
        _require_range("Edges: sender", sender, clouds.rows)
        _require_one_cloud("Edges", sender, incoming.ids, clouds)
    elif not torch.equal(incoming.lengths, degrees_of_all_pairs(clouds)):
        raise ShapeError(
            "Edges: found numbers of edges that are not those of all pairs in each cloud, which "
            "are meant without a sender. Pass sender, or use Edges.complete."
        )


def require_index(edge_index: Tensor, n: int, clouds: Segments) -> None:
    """A list of edges (2, E) is one of `n` nodes in these clouds.

    Raises:
        ShapeError: If it is not.
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ShapeError(
            f"edge_index: found {tuple(edge_index.shape)} of {edge_index.dtype}, "
            "expected (2, E) of torch.int64."
        )
    _require_range("edge_index", edge_index, n)
    if clouds.rows != n:
        raise ShapeError(f"ptr: ends at {clouds.rows}, expected n = {n}.")
    _require_one_cloud("edge_index", edge_index[0], edge_index[1], clouds)


def _require_range(where: str, nodes: Tensor, count: int) -> None:
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= count):
        raise ShapeError(
            f"{where}: found indices from {int(nodes.min())} to {int(nodes.max())}, "
            f"expected 0 to {count - 1}."
        )


def _require_one_cloud(where: str, sender: Tensor, receiver: Tensor, clouds: Segments) -> None:
    if clouds.count < 2:
        return
    joins = clouds.ids[sender] != clouds.ids[receiver]
    if joins.any():
        first = int(joins.nonzero()[0])
        raise ShapeError(
            f"{where}: edge {first}, {int(sender[first])} → {int(receiver[first])}, joins "
            "two graphs of ptr, expected both ends in one. Pass no ptr if it is one graph."
        )
