"""The Triton backend: fused kernels on CSR and CSC order, without atomics, deterministic."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.kernels.attention import attention_diffusion, why_not_attention
from eqflow.edges.kernels.launch import why_not
from eqflow.edges.kernels.messages import egcl_messages, egcl_messages_dual, why_not_messages
from eqflow.edges.kernels.primitives import (
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
    why_not_heads,
)


def unsupported(operation: str, *arguments: Any) -> str | None:
    """Why this backend cannot do a call, or None where it can."""
    if operation not in __all__:
        return "no kernel for it yet"
    if operation in ("egcl_messages", "egcl_messages_dual"):
        return why_not_messages(operation, *arguments)
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    edges = next(value for value in arguments if isinstance(value, Edges))
    if operation == "attention_diffusion":
        query, _, x = tensors
        return why_not(tensors, edges) or why_not_attention(query, x)
    if operation in ("weighted_sum", "weighted_difference"):
        return why_not(tensors, edges) or why_not_heads(*tensors)
    return why_not(tensors, edges)


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
    "unsupported",
    "weighted_difference",
    "weighted_sum",
]
