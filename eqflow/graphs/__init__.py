"""Graphs with labelled nodes: data sets, splits, encodings, rewiring, and classifiers of nodes."""

from eqflow.graphs.agreement import homophily
from eqflow.graphs.citations import planetoid
from eqflow.graphs.components import component_ids, largest_component, subgraph
from eqflow.graphs.deepwalk import deepwalk, deepwalk_matrix
from eqflow.graphs.features import binary_features, normalised_features
from eqflow.graphs.files import read_graph, write_graph
from eqflow.graphs.graph import Graph, Split
from eqflow.graphs.hyperbolic import (
    exp_at_origin,
    into_ball,
    log_at_origin,
    mobius_add,
    poincare_distance,
    poincare_embedding,
)
from eqflow.graphs.node_splits import (
    development_split,
    fraction_split,
    per_class_split,
    planetoid_split,
    random_split,
)
from eqflow.graphs.ppr import (
    personalised_pagerank,
    ppr_encoding,
    ppr_low_rank_encoding,
    sparse_pagerank,
)
from eqflow.graphs.pyg import from_pyg
from eqflow.graphs.rewiring import diffused_graph, ppr_top_k, prune, two_hop, union
from eqflow.graphs.sources import load_graph, unused_edge_weights
from eqflow.graphs.sparsification import AbstractKeep, AtLeast, AverageDegree, LargestPerRow
from eqflow.graphs.spectral import laplacian_encoding, random_signs, random_walk_encoding

__all__ = [
    "AbstractKeep",
    "AtLeast",
    "AverageDegree",
    "Graph",
    "LargestPerRow",
    "Split",
    "binary_features",
    "component_ids",
    "deepwalk",
    "deepwalk_matrix",
    "development_split",
    "diffused_graph",
    "exp_at_origin",
    "fraction_split",
    "from_pyg",
    "homophily",
    "into_ball",
    "laplacian_encoding",
    "largest_component",
    "load_graph",
    "log_at_origin",
    "mobius_add",
    "normalised_features",
    "per_class_split",
    "personalised_pagerank",
    "planetoid",
    "planetoid_split",
    "poincare_distance",
    "poincare_embedding",
    "ppr_encoding",
    "ppr_low_rank_encoding",
    "ppr_top_k",
    "prune",
    "random_signs",
    "random_split",
    "random_walk_encoding",
    "read_graph",
    "sparse_pagerank",
    "subgraph",
    "two_hop",
    "union",
    "unused_edge_weights",
    "write_graph",
]
