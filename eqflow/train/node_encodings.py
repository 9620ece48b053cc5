"""From configuration to positions of nodes and to other edges: one function a choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs import Graph
from eqflow.graphs.deepwalk import deepwalk
from eqflow.graphs.hyperbolic import poincare_embedding
from eqflow.graphs.ppr import ppr_encoding, ppr_low_rank_encoding
from eqflow.graphs.rewiring import ppr_top_k, two_hop, union
from eqflow.graphs.spectral import laplacian_encoding, random_walk_encoding
from eqflow.train.node_config import NoEncodingConfig, NoRewiringConfig, RewiringConfig

# What takes long enough for a line before it.
SLOW = ("poincare", "deepwalk", "ppr")


def _ppr(edges: Edges, config: Any, seed: int) -> Tensor:
    if config.width is None:
        return ppr_encoding(edges, teleport=config.teleport)
    return ppr_low_rank_encoding(edges, config.width, teleport=config.teleport, seed=seed)


def _deepwalk(edges: Edges, config: Any, seed: int) -> Tensor:
    return deepwalk(edges, config.width, config.window, seed=seed)


def _laplacian(edges: Edges, config: Any, seed: int) -> Tensor:
    return laplacian_encoding(edges, config.width, seed)


def _random_walk(edges: Edges, config: Any, seed: int) -> Tensor:
    return random_walk_encoding(edges, config.width)


def _poincare(edges: Edges, config: Any, seed: int) -> Tensor:
    return poincare_embedding(edges, config.width, seed)


ENCODERS: dict[str, Callable[[Edges, Any, int], Tensor]] = {
    "ppr": _ppr,
    "deepwalk": _deepwalk,
    "laplacian": _laplacian,
    "random_walk": _random_walk,
    "poincare": _poincare,
}


def encoded(
    graph: Graph, config: NoEncodingConfig, seed: int, announce: Callable[[str], None]
) -> Tensor | None:
    """Positions of the nodes, shape (N, P), a function of graph, configuration and seed.

    Raises:
        UsageError: If there is no such encoding.
    """
    if config.name == "none":
        return None
    if config.name not in ENCODERS:
        raise UsageError(
            f"encoding: found {config.name!r}, expected none or one of {', '.join(ENCODERS)}."
        )
    if config.name in SLOW:
        announce(f"encoding {graph.nodes:,} nodes by {config.name}")
    return ENCODERS[config.name](graph.edges, config, seed)


def _knn(edges: Edges, encoding: Tensor | None, config: Any) -> Edges:
    return Edges.knn(_positions(encoding), config.neighbours, edges.clouds)


def _radius(edges: Edges, encoding: Tensor | None, config: Any) -> Edges:
    return Edges.radius(_positions(encoding), config.radius, edges.clouds)


def _ppr_top_k(edges: Edges, encoding: Tensor | None, config: Any) -> Edges:
    return ppr_top_k(edges, config.neighbours, config.teleport)


def _two_hop(edges: Edges, encoding: Tensor | None, config: Any) -> Edges:
    return two_hop(edges)


REWIRERS: dict[str, Callable[[Edges, Tensor | None, Any], Edges]] = {
    "knn": _knn,
    "radius": _radius,
    "ppr_top_k": _ppr_top_k,
    "two_hop": _two_hop,
}


def rewired(graph: Graph, encoding: Tensor | None, config: NoRewiringConfig) -> Edges:
    """The edges that a configuration asks for.

    Raises:
        UsageError: If there is no such rewiring, or it needs an encoding that there is not.
    """
    if config.name == "none":
        return graph.edges
    if config.name not in REWIRERS:
        raise UsageError(
            f"rewiring: found {config.name!r}, expected none or one of {', '.join(REWIRERS)}."
        )
    edges = REWIRERS[config.name](graph.edges, encoding, config)
    is_added = isinstance(config, RewiringConfig) and config.keep
    return union(graph.edges, edges) if is_added else edges


def _positions(encoding: Tensor | None) -> Tensor:
    if encoding is None or encoding.layout is torch.sparse_csr:
        raise UsageError(
            "rewiring: found no encoding of some channels, expected one to have neighbours in: "
            "encoding=… encoding.width=16."
        )
    return encoding
