"""Diffusions on small irregular graphs, and what they are by dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.nn.diffusion import AbstractDiffusion, Coefficients

NODES, CHANNELS = 9, 3
KINDS = ("plain", "gain", "damped", "source", "signed", "mixed", "heads", "everything")


def irregular_graph(nodes: int = NODES, count: int = 30, seed: int = 1) -> Edges:
    """Directed, with self loops, a repeated edge, and a last node without any edge."""
    source = torch.Generator().manual_seed(seed)
    index = torch.randint(0, nodes - 1, (2, count), generator=source)
    extra = torch.tensor([[0, 0, 2], [0, 1, 2]])
    return Edges.from_index(torch.cat([index, extra, index[:, :1]], 1), nodes)


def symmetric_graph(nodes: int = NODES, count: int = 14, seed: int = 1) -> Edges:
    """Both directions of each edge, none repeated."""
    source = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(nodes))
    pairs = pairs[torch.randperm(len(pairs), generator=source)[:count]].t()
    return Edges.from_index(torch.cat([pairs, pairs.flip(0)], 1), nodes)


def coefficients_of(
    kind: str, edges: Edges, channels: int = CHANNELS, seed: int = 0
) -> Coefficients:
    """Random coefficients in float64, with parts by kind."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    weight = normal(edges.count).abs()
    gain = mixing = damping = given = None
    if kind in ("gain", "everything"):
        gain = 0.3 * normal(edges.nodes)
    if kind in ("damped",):
        damping = normal(channels).abs()
    if kind in ("source", "everything"):
        given = normal(edges.nodes, channels)
    if kind == "signed":
        weight, damping = 0.3 * normal(edges.count), torch.tensor(0.2, dtype=torch.float64)
    if kind in ("mixed", "everything"):
        mixing, damping = 0.4 * normal(channels, channels), 0.5 * normal(channels, channels)
    if kind == "heads":
        weight = normal(edges.count, 2).abs()
        mixing, gain = 0.2 * normal(2 * channels, channels), 0.1 * normal(edges.nodes)
    return Coefficients(edges, weight, gain, mixing, damping, given)


def state_of(edges: Edges, channels: int = CHANNELS, seed: int = 5) -> Tensor:
    """A random state in float64."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(edges.nodes, channels, generator=source, dtype=torch.float64)


def dense_operator(coefficients: Coefficients, channels: int = CHANNELS) -> Tensor:
    """`L` as a matrix on flattened states, from the definition, entry by entry.

    It shares nothing with the edge primitives.
    """
    edges, n, C = coefficients.edges, coefficients.edges.nodes, channels
    weight = coefficients.weight.reshape(edges.count, -1)
    eye = torch.eye(C, dtype=weight.dtype)
    mixing = eye if coefficients.mixing is None else coefficients.mixing
    L = weight.new_zeros(n, C, n, C)
    for head, mixer in enumerate(mixing.reshape(weight.shape[1], C, C)):
        A = weight.new_zeros(n, n)
        for e in range(edges.count):
            i, j = int(edges.receiver[e]), int(edges.sender[e])
            A[i, j] = A[i, j] + weight[e, head]
            A[i, i] = A[i, i] - weight[e, head]
        if coefficients.gain is not None:
            A = A + torch.diag(coefficients.gain)
        L = L + torch.einsum("ij,ab->ibja", A, mixer)
    if coefficients.damping is not None:
        damping = coefficients.damping
        damping = damping if damping.dim() == 2 else damping * eye
        L = L - torch.einsum("ij,ab->ibja", torch.eye(n, dtype=weight.dtype), damping)
    return L.reshape(n * C, n * C)


def dense_solution(coefficients: Coefficients, x: Tensor, t: float) -> Tensor:
    """`x(t)` by a dense matrix exponential, the source as a further row."""
    L = dense_operator(coefficients, x.shape[1])
    size = len(L)
    augmented = L.new_zeros(size + 1, size + 1)
    augmented[:size, :size] = L
    if coefficients.source is not None:
        augmented[:size, size] = coefficients.source.reshape(-1)
    start = torch.cat([x.reshape(-1), x.new_ones(1)])
    return (torch.linalg.matrix_exp(t * augmented) @ start)[:size].reshape(x.shape)


class Quasilinear(AbstractDiffusion):
    """Weights that depend on state and time, smoothly; a constant source."""

    def __init__(self, edges: Edges, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.weight = torch.nn.Parameter(coefficients_of("plain", edges).weight)
        self.source = torch.nn.Parameter(0.3 * state_of(edges, seed=8))

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """`w (1 + ½ sin(t + ⟨x_r, x_c⟩))`."""
        across = (x[edges.receiver] * x[edges.sender]).sum(1)
        weight = self.weight * (1 + 0.5 * self.strength * torch.sin(t + across))
        return Coefficients(edges, weight, source=self.source)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative in the Euclidean norm."""
    return float((found - expected).detach().norm() / expected.detach().norm())
