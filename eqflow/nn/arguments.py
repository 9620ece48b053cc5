"""What users may hand over by mistake: refused with what was found and what to do."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError


def require_edges(where: str, edges: Any) -> None:
    """Refuse what is no graph, such as an `edge_index`.

    Raises:
        UsageError: That says how to make one.
    """
    if not isinstance(edges, Edges):
        raise UsageError(
            f"{where}: found edges of type {type(edges).__name__}, expected Edges. Of a tensor "
            "(2, E), senders first, make Edges.from_index(edge_index, nodes)."
        )


def require_counts(where: str, least: int = 1, **counts: Any) -> None:
    """Refuse what is no whole number from `least`.

    Raises:
        UsageError: That names all of them.
    """
    wrong = [
        f"{name}={count!r}"
        for name, count in counts.items()
        if not isinstance(count, Integral) or isinstance(count, bool) or count < least
    ]
    if wrong:
        raise UsageError(
            f"{where}: found {', '.join(wrong)}, expected whole numbers, each at least {least}."
        )


def require_kind_of(where: str, module: nn.Module, x: Any) -> None:
    """Refuse a state of another type or device than the parameters of what it is given to.

    Under autocast types are PyTorch's own business.

    Raises:
        ShapeError: That says which of them to convert.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(f"{where}: found x of type {type(x).__name__}, expected a tensor (N, C).")
    parameter = next(module.parameters(), None)
    if parameter is None or torch.is_autocast_enabled(x.device.type):
        return
    if x.dtype != parameter.dtype or x.device != parameter.device:
        kind = str(parameter.dtype).removeprefix("torch.")
        raise ShapeError(
            f"{where}: found x of {x.dtype} on {x.device}, expected {parameter.dtype} on "
            f"{parameter.device}, as its parameters. Convert one of them: "
            f"x.to('{parameter.device}', torch.{kind}), or module.to(x)."
        )
