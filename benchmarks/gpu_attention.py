"""Attention diffusion on sparse graphs, against the torch backend and PyG's TransformerConv."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench, Result
from gpu_checks import worst_error
from gpu_problems import by_torch, by_triton, skewed
from gpu_roofline import attention_work
from gpu_scale import Diffusion
from torch import Tensor, nn

from eqflow import rng
from eqflow.edges import Edges, attention_diffusion

PYG = "PyG TransformerConv, fp32"

Diffuse = Callable[[Tensor, Tensor, Tensor], Tensor]


def time_attention(bench: Bench) -> None:
    """Value and gradient on each graph."""
    for name, shape in bench.scale.diffusions.items():
        _time_graph(bench, name, shape, skewed(shape, bench.device))


class Given(nn.Module):
    """A projection that is not computed: the tensor it would give."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.zeros(())

    def forward(self, _: Tensor) -> Tensor:
        """That tensor."""
        return self.value


def transformer_conv(channels: int, edges: Edges) -> Diffuse:
    """PyG's layer without its projections: the same sum, `x` taken off afterwards."""
    from torch_geometric.nn import TransformerConv

    layer = TransformerConv(channels, channels, root_weight=False)
    layer.lin_query, layer.lin_key, layer.lin_value = (Given() for _ in range(3))
    index = torch.stack([edges.sender, edges.receiver])
    occupied = (edges.incoming.lengths > 0).unsqueeze(1)

    def diffuse(query: Tensor, key: Tensor, x: Tensor) -> Tensor:
        layer.lin_query.value, layer.lin_key.value, layer.lin_value.value = query, key, x
        return layer(x, index) - x * occupied

    return diffuse


def _time_graph(bench: Bench, name: str, of: Diffusion, edges: Edges) -> None:
    source = rng.generator(0, "attention", device=bench.device)
    like = torch.zeros((), device=bench.device)
    inputs = [rng.normal((of.nodes, of.channels), like, source) for _ in range(3)]
    by_kernel = partial(by_triton, "ieee")

    def kernels(query: Tensor, key: Tensor, x: Tensor) -> Tensor:
        return attention_diffusion(query, key, x, edges)

    ways: list[tuple[str, Diffuse, Callable[[], Any], torch.dtype]] = [
        ("Triton, fp32", kernels, by_kernel, torch.float32),
        ("Triton, bf16", kernels, by_kernel, torch.bfloat16),
        ("torch, fp32", kernels, by_torch, torch.float32),
    ]
    if importlib.util.find_spec("torch_geometric") is not None:
        ways.append((PYG, transformer_conv(of.channels, edges), by_torch, torch.float32))

    def timed(diffuse: Diffuse, setting: Any, dtype: torch.dtype, kind: str) -> Result:
        leaves = [value.to(dtype).requires_grad_() for value in inputs]

        def values() -> None:
            with torch.no_grad():
                diffuse(*leaves)

        def gradients() -> None:
            out = diffuse(*leaves)
            torch.autograd.grad(out, leaves, out.detach())

        def loss() -> Tensor:
            return diffuse(*leaves).square().sum()

        is_training = kind == "forward + backward"
        with setting():
            timing = bench.time(gradients if is_training else values)
            if is_training:
                timing |= bench.memory(loss)
        work = attention_work(of, kind, leaves[0].element_size())
        return timing | {"work": work._asdict()}

    def error(diffuse: Diffuse, setting: Any, dtype: torch.dtype) -> Result:
        with torch.no_grad():
            with setting():
                found = diffuse(*(value.to(dtype) for value in inputs))
            with by_torch():
                exact = kernels(*(value.to(dtype).double() for value in inputs))
        return {"errors": {"value": worst_error([found], [exact])}}

    for way, diffuse, setting, dtype in ways:
        for kind in ("forward", "forward + backward"):
            bench.case(f"{way}: {kind}, {name}", partial(timed, diffuse, setting, dtype, kind))
        bench.case(f"{way}: error, {name}", partial(error, diffuse, setting, dtype))
