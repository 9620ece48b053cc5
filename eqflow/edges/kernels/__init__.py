"""The Triton backend: fused kernels on CSR and CSC order, without atomics, deterministic."""

from __future__ import annotations

import sys
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
    normalised,
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
    first = arguments[0]
    like = first if isinstance(first, Tensor) else first.x
    recorded = like.is_cuda and torch.cuda.is_current_stream_capturing()
    if recorded or torch._C._are_functorch_transforms_active():
        return None
    width = power_of_2(_width(operation, *arguments))
    return failing(
        getattr(sys.modules[__name__], operation),
        like.device,
        like.dtype,
        min(width, WIDEST_CHECKED),
        active_precision(),
    )


def _width(operation: str, *arguments: Any) -> int:
    """Of the rows of features, or of the widest there are."""
    if operation == "egcl_messages":
        return int(arguments[1].shape[-1])
    if operation == "egcl_messages_dual":
        return int(arguments[0].receiver.shape[-1])
    if operation in ("segment_softmax", "normalised"):
        return 1
    given = [value for value in arguments if isinstance(value, Tensor)]
    rows = given[1:] if operation in ("weighted_sum", "weighted_difference") else given
    return max(value.shape[-1] for value in rows if value.dim() > 1) if rows[0].dim() > 1 else 1


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
    "unbelievable",
    "unsupported",
    "weighted_difference",
    "weighted_sum",
]
