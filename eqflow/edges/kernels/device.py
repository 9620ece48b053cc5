"""Where kernels run: the GPU that holds the tensors, or Triton's interpreter on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from triton import knobs

# Triton reads this when a kernel is decorated, so it holds for the whole process.
INTERPRETED: bool = knobs.runtime.interpret


def on_device(like: Tensor) -> AbstractContextManager[object]:
    """A block in which kernels are launched on the device of `like`."""
    return torch.cuda.device(like.device) if like.is_cuda else nullcontext()


def programs_at_once(like: Tensor) -> int:
    """About as many programs as run at the same time: two to a multiprocessor."""
    if not like.is_cuda:
        return 2
    return 2 * torch.cuda.get_device_properties(like.device).multi_processor_count
