"""What is derived from a graph alone, such as degrees, is computed once for each graph.

Layers of a network, and evaluations of a solver, ask for the same numbers hundreds of times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.geometry.segments import lasting

P = ParamSpec("P")
R = TypeVar("R")


def once_per_graph(
    function: Callable[Concatenate[Edges, P], R],
) -> Callable[Concatenate[Edges, P], R]:
    """Keep what `function(edges, …)` returns for as long as those very edges live.

    The result must not refer to the edges, which would then live as long as the program. It is a
    constant to any derivative.
    """
    kept: WeakKeyDictionary[Edges, dict[Any, R]] = WeakKeyDictionary()
    compute = lasting(function)

    @wraps(function)
    def recalled(edges: Edges, /, *args: P.args, **options: P.kwargs) -> R:
        results = kept.setdefault(edges, {})
        key = (args, *sorted(options.items()))
        if key not in results:
            results[key] = compute(edges, *args, **options)
        return results[key]

    return recalled


@once_per_graph
def degrees(edges: Edges, dtype: torch.dtype) -> Tensor:
    """Number of incoming edges of each node, (N,), repeated ones and self loops counted."""
    return edges.incoming.lengths.to(dtype)
