"""The edge primitives: one meaning, several backends, one dispatch."""

from eqflow.edges.backend import active_backend, use_backend
from eqflow.edges.fused import (
    EdgeNetwork,
    Gate,
    attention_diffusion,
    egcl_messages,
    smooth_cutoff,
)
from eqflow.edges.graph import Edges
from eqflow.edges.primitives import (
    difference_dot,
    edge_dot,
    edge_linear,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    weighted_difference,
    weighted_sum,
)

__all__ = [
    "EdgeNetwork",
    "Edges",
    "Gate",
    "active_backend",
    "attention_diffusion",
    "difference_dot",
    "edge_dot",
    "edge_linear",
    "egcl_messages",
    "gather",
    "segment_softmax",
    "segment_sum",
    "smooth_cutoff",
    "squared_distance",
    "use_backend",
    "weighted_difference",
    "weighted_sum",
]
