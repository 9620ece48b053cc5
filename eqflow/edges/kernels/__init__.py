"""The Triton backend: fused kernels on CSR and CSC order, without atomics, deterministic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqflow.edges.backend import active_precision
from eqflow.edges.graph import Edges
from eqflow.edges.kernels.attention import attention_diffusion, why_not_attention
from eqflow.edges.kernels.launch import power_of_2, why_not
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
from eqflow.edges.kernels.self_check import failing

WIDEST_CHECKED = 256


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


def unbelievable(operation: str, *arguments: Any) -> str | None:
    """Why this backend's kernel is not to be believed on the device of a call, or None.

    The check waits for a call outside of `torch.func` transforms and of the recording of a graph.
    """
    recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if recorded or torch._C._are_functorch_transforms_active():
        return None
    first = arguments[0]
    like = first if isinstance(first, Tensor) else first.x
    width = like.shape[-1]
    if operation in ("egcl_messages", "egcl_messages_dual"):
        width = (arguments[1] if operation == "egcl_messages" else first.receiver).shape[-1]
    wanted = min(power_of_2(width), WIDEST_CHECKED), active_precision()
    return failing(globals()[operation], like.device, like.dtype, *wanted)


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
    "unbelievable",
    "unsupported",
    "weighted_difference",
    "weighted_sum",
]
