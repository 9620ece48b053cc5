"""The edge primitives: one meaning, several backends, one dispatch."""

from eqflow.edges.backend import (
    active_backend,
    active_precision,
    available_backends,
    record_backends,
    use_backend,
)
from eqflow.edges.dual import Dual, dual_linear, dual_silu
from eqflow.edges.fused import (
    attention_diffusion,
    egcl_messages,
    egcl_messages_dual,
    smooth_cutoff,
    smooth_cutoff_slope,
)
from eqflow.edges.graph import Edges
from eqflow.edges.network import (
    DISTANCE_EPSILON,
    EdgeNetwork,
    Gate,
    MessageDual,
    MessageInputs,
    MessageTangents,
)
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
from eqflow.edges.weights import Normaliser, attention_weights, normalised

__all__ = [
    "DISTANCE_EPSILON",
    "Dual",
    "EdgeNetwork",
    "Edges",
    "Gate",
    "MessageDual",
    "MessageInputs",
    "MessageTangents",
    "Normaliser",
    "active_backend",
    "active_precision",
    "attention_diffusion",
    "attention_weights",
    "available_backends",
    "difference_dot",
    "dual_linear",
    "dual_silu",
    "edge_dot",
    "edge_linear",
    "egcl_messages",
    "egcl_messages_dual",
    "gather",
    "normalised",
    "record_backends",
    "segment_softmax",
    "segment_sum",
    "smooth_cutoff",
    "smooth_cutoff_slope",
    "squared_distance",
    "use_backend",
    "weighted_difference",
    "weighted_sum",
]
