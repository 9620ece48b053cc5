"""Graphs, networks and inputs that `gpu.py` checks and times, and the settings they run under."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gpu_scale import Diffusion, Molecules
from torch import Tensor

from eqflow import rng
from eqflow.edges import (
    EdgeNetwork,
    Edges,
    Gate,
    MessageInputs,
    MessageTangents,
    egcl_messages,
    egcl_messages_dual,
    use_backend,
)
from eqflow.geometry import Segments

SMALLEST, LARGEST = 9, 29  # molecules of QM9


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """How torch itself multiplies float32 matrices: "highest" as float32, "high" in tf32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def by_triton(precision: Any) -> Iterator[None]:
    """Kernels or an error; torch's products at nodes are no more precise than those of kernels."""
    setting = "high" if precision in ("tf32", "bf16") else "highest"
    with ExitStack() as stack:
        stack.enter_context(matrix_products(setting))
        stack.enter_context(use_backend("triton", precision=precision, strict=True))
        yield


@contextmanager
def by_torch(setting: str = "highest") -> Iterator[None]:
    """The torch backend."""
    with matrix_products(setting), use_backend("torch"):
        yield


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors are NaN until they are written, so that none is right by what was there before.

    This is a side of torch's deterministic mode.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# Graphs.


def complete(sizes: tuple[int, ...], device: torch.device) -> Edges:
    """Complete graphs of the given sizes."""
    return Edges.complete(Segments.of_lengths(torch.tensor(sizes, device=device)))


def pairs(count: int, device: torch.device) -> Edges:
    """`count` complete graphs of two to four points: few edges a receiver."""
    return complete(tuple(2 + k % 3 for k in range(count)), device)


def hub(leaves: int, device: torch.device) -> Edges:
    """One node with `leaves` neighbours, edges both ways, and each leaf with the next."""
    leaf = torch.arange(1, leaves + 1, device=device)
    out, around = torch.stack([leaf, torch.zeros_like(leaf)]), torch.stack([leaf, leaf.roll(1)])
    return Edges.from_index(torch.cat([out, out.flip(0), around], 1), leaves + 1)


def skewed(of: Diffusion, device: torch.device) -> Edges:
    """A random graph of which some nodes have many times the edges of others, at either end."""
    source = rng.generator(0, "graph", device=device)
    drawn = rng.uniform((2, of.edges), torch.zeros((), device=device), source)
    index = (drawn.square() * of.nodes).long().clamp(max=of.nodes - 1)
    return Edges.from_index(index, of.nodes)


def sizes_of(molecules: Molecules, device: torch.device) -> Tensor:
    """Number of points of each cloud, shape (B,)."""
    drawn = rng.normal((molecules.count,), torch.zeros(()), rng.generator(0, "sizes"))
    sizes = (molecules.size + molecules.spread * drawn).round().long()
    if molecules.spread:
        sizes = sizes.clamp(SMALLEST, LARGEST)
    return sizes.to(device)


# Message passes.


@dataclass(frozen=True, eq=False)
class MessagePass:
    """A message pass, or one with tangents, as a function of its tensors.

    Attributes:
        edges, inputs, network: What it is of.
        tangent: Directions, or None for the value alone.
    """

    edges: Edges
    inputs: MessageInputs
    network: EdgeNetwork
    tangent: MessageTangents | None = None

    def tensors(self) -> list[Tensor]:
        """Those there are: of the inputs, of the tangents, then weights."""
        given = [*self.inputs, *(self.tangent or ())]
        return [*(value for value in given if value is not None), *self.network.tensors()]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Both sums, and their tangents."""
        rest = list(tensors)
        given = [v if v is None else rest.pop(0) for v in self.inputs]
        moved = [v if v is None else rest.pop(0) for v in self.tangent or ()]
        network = self.network.with_tensors(tuple(rest))
        inputs = MessageInputs(*given)  # type: ignore[arg-type]
        if self.tangent is not None:
            tangent = MessageTangents(*moved)  # type: ignore[arg-type]
            return egcl_messages_dual(inputs, tangent, network, self.edges)
        x, receiver, sender, scalars, envelope = inputs
        return egcl_messages(x, receiver, sender, scalars, network, self.edges, envelope)


def message_pass(
    edges: Edges, width: int, dtype: torch.dtype, *, every_option: bool = False, dimension: int = 3
) -> MessagePass:
    """A pass as in `EGNNField`: one scalar an edge, attention, bounded and stabilized.

    With every option there are inferred edges and an envelope as well, and weights are divided by
    the number of neighbours.
    """
    like = torch.zeros((), dtype=dtype, device=edges.incoming.ptr.device)
    source = rng.generator(0, "message pass", device=like.device)

    def draw(*shape: int, size: float = 1.0) -> Tensor:
        return size * rng.normal(shape, like, source)

    small = 1 / math.sqrt(width)
    inputs = MessageInputs(
        x=draw(edges.nodes, dimension),
        receiver=draw(edges.nodes, width),
        sender=draw(edges.nodes, width),
        scalars=draw(edges.count, 1),
        envelope=draw(edges.count).sigmoid() if every_option else None,
    )
    network = EdgeNetwork(
        scalar_weight=draw(width, 2, size=small),
        message_weight=draw(width, width, size=small),
        message_bias=draw(width, size=small),
        coordinate_weight=draw(width, width, size=small),
        coordinate_bias=draw(width, size=small),
        coordinate_out=draw(1, width, size=small),
        attention=Gate(draw(1, width, size=small), draw(1)),
        inference=Gate(draw(1, width, size=small), draw(1)) if every_option else None,
        coordinate_range=1.5,
        stabilized=not every_option,
    )
    return MessagePass(edges, inputs, network)


def with_directions(of: MessagePass, count: int, *, of_features: bool = True) -> MessagePass:
    """The pass with random directions of everything, or with none of the features."""
    x = of.inputs.x
    source = rng.generator(0, "directions", device=x.device)
    still = () if of_features else ("receiver", "sender")
    moved = {
        name: None
        if value is None or name in still
        else rng.normal((len(value), count, *value.shape[1:]), x, source)
        for name, value in of.inputs._asdict().items()
    }
    tangent = MessageTangents(**moved)  # type: ignore[arg-type]
    return MessagePass(of.edges, of.inputs, of.network, tangent)
