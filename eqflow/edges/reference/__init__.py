"""The torch backend: what each operation on edges means, for any device, dtype and shape."""

from eqflow.edges.reference.attention import attention_diffusion
from eqflow.edges.reference.by_hand.normalise import normalised, segment_softmax
from eqflow.edges.reference.by_hand.sums import (
    difference_dot,
    edge_dot,
    weighted_difference,
    weighted_sum,
)
from eqflow.edges.reference.messages import egcl_messages, egcl_messages_dual
from eqflow.edges.reference.primitives import (
    edge_linear,
    gather_receiver,
    gather_sender,
    squared_distance,
    sum_receiver,
    sum_sender,
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
    "normalised",
    "segment_softmax",
    "squared_distance",
    "sum_receiver",
    "sum_sender",
    "weighted_difference",
    "weighted_sum",
]
