"""The message pass of one layer alone, by width: where the time of a field goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from gpu_bench import Bench, Result
from gpu_problems import (
    MessagePass,
    by_torch,
    by_triton,
    complete,
    message_pass,
    sizes_of,
    with_directions,
)
from gpu_roofline import message_work


def time_layers(bench: Bench) -> None:
    """Value and gradient, without and with a tangent, by kernels and by torch."""
    sizes = sizes_of(bench.scale.chemistry, bench.device)
    edges = complete(tuple(sizes.tolist()), bench.device)
    settings: dict[str, tuple[Callable[[], Any], str]] = {
        f"Triton, {p}": (partial(by_triton, p), p) for p in bench.scale.precisions
    }
    settings["torch, fp32"] = by_torch, "ieee"
    for width in bench.scale.widths:
        value = message_pass(edges, width, torch.float32)
        dual = with_directions(value, 1)
        cases = {
            "forward": value,
            "forward + backward": value,
            "value + trace": dual,
            "its gradient": dual,
        }
        for (kind, made), (way, (setting, precision)) in product(cases.items(), settings.items()):
            case = partial(_timed, bench, made, kind, setting, precision)
            bench.case(f"{way}: {kind}, F = {width}", case)


def _timed(
    bench: Bench, made: MessagePass, kind: str, setting: Callable[[], Any], precision: str
) -> Result:
    leaves = [tensor.detach().requires_grad_() for tensor in made.tensors()]

    def loss() -> torch.Tensor:
        return torch.stack([part.square().sum() for part in made(*leaves)]).sum()

    def values() -> None:
        with torch.no_grad():
            made(*leaves)

    def gradients() -> None:
        torch.autograd.grad(loss(), leaves)

    is_training = kind in ("forward + backward", "its gradient")
    with setting():
        timing = bench.time(gradients if is_training else values)
        if is_training:
            timing |= bench.memory(loss)
    edges, inputs = made.edges, made.inputs
    (_, width), dimension = inputs.receiver.shape, inputs.x.shape[1]
    work = message_work(edges.nodes, edges.count, width, dimension, kind, precision)
    return timing | {"work": work._asdict()}
