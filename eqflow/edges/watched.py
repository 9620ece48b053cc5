"""Whether somebody looks into a computation, which then has to be of torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_watched(like: Tensor) -> bool:
    """Whether forward mode, `torch.func`, autocast or a compiler needs formulas to be plain."""
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled(like.device.type)
    )


def is_watched_backward(*covectors: Tensor) -> bool:
    """Whether a backward pass is to be differentiated, or batched."""
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or any(is_batched(covector) for covector in covectors)
    )


def is_batched(values: Tensor) -> bool:
    """Whether these are the many at once of `torch.autograd.grad` with `is_grads_batched`."""
    found: bool = torch._C._functorch.is_legacy_batchedtensor(values)
    return found
