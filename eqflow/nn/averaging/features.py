"""What is averaged, and the features that tell its points apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqflow.geometry.frames.ties import packed

# `backbone(x, ptr, h)`: positions (N, d), starts of clouds (B + 1,), features (N, F) or None; a row
# a point, (N, k), or a row a cloud, (B, k).
Backbone = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@torch.no_grad()
def types_of(h: Tensor | None) -> Tensor | None:
    """Numbers that tell rows of features apart, (N, F) to (N,), in the order of the rows."""
    if h is None or h.numel() == 0:
        return None
    # Column by column: `unique` of whole rows takes tens of times as long.
    columns = h.detach().reshape(len(h), -1).unbind(1)
    keys = [torch.unique(column, return_inverse=True)[1] for column in columns]
    return torch.unique(packed(keys), return_inverse=True)[1]
