"""The torch backend: what each operation on edges means, for any device, dtype and shape."""

from eqflow.edges.reference.attention import attention_diffusion
from eqflow.edges.reference.messages import egcl_messages, egcl_messages_dual
from eqflow.edges.reference.primitives import (
    difference_dot,
    edge_dot,
    edge_linear,
    gather_receiver,
    gather_sender,
    segment_softmax,
    squared_distance,
    sum_receiver,
    sum_sender,
    weighted_difference,
    weighted_sum,
)

__all__ = [
    "attention_diffusion",
    "difference_dot",
    "edge_dot",
    "edge_linear",
    "egcl_messages",
    "egcl_messages_dual",
    "gather_receiver",
    "gather_sender",
    "segment_softmax",
    "squared_distance",
    "sum_receiver",
    "sum_sender",
    "weighted_difference",
    "weighted_sum",
]
