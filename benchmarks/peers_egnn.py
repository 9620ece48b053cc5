"""EGNN stacks: eqflow against PyG's `MessagePassing` and against `egnn-pytorch`.

All but one compute the same function, with weights copied from eqflow: stabilized coordinate
updates and a gate on each message. `egnn-pytorch` works on dense batches, padded to the largest
cloud, and sends messages from each point to itself: eqflow is given a graph with self loops there.
Its MLPs are wider than those of the paper; both forms run, with MLPs put in their place (same
function) and as they are ("own MLPs": not the same function, for what its users get).
Edge lists and padded batches are made beforehand for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import egnn_pytorch
import torch
from peers_contest import agreement, contest
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from eqflow import rng
from eqflow.edges import DISTANCE_EPSILON, Edges
from eqflow.geometry import Segments, centred
from eqflow.nn import EGCL

WIDTH = 64
DEPTHS = (1, 4)
SHAPES: dict[str, Callable[[], Tensor]] = {
    "QM9, B = 64, 9–29 atoms": lambda: _drawn_sizes(64),
    "LJ13, B = 256": lambda: torch.full((256,), 13),
    "LJ55, B = 32": lambda: torch.full((32,), 55),
}
PYG, DENSE, DENSE_OWN = "PyG MessagePassing", "egnn-pytorch", "egnn-pytorch, own MLPs"
PEERS = (PYG, DENSE, DENSE_OWN)
PAIRS, LOOPS = "eqflow", "eqflow, self loops"
# The graph each peer's function has.
COUNTERPARTS = {PYG: PAIRS, DENSE: LOOPS, DENSE_OWN: PAIRS}


class MessagePassingLayer(MessagePassing):
    """The layer as one writes it with PyG: concatenate, evaluate per edge, scatter.

    Args:
        layer: Where the weights are taken from.
    """

    def __init__(self, layer: EGCL) -> None:
        super().__init__(aggr="add")
        self.edge, self.gate, self.coordinate, self.node = _networks(layer)

    def forward(self, x: Tensor, h: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and features after the layer."""
        shift, message = self.propagate(edge_index, x=x, h=h)
        return x + shift, h + self.node(torch.cat([h, message], -1))

    def message(self, x_i: Tensor, x_j: Tensor, h_i: Tensor, h_j: Tensor) -> tuple[Tensor, Tensor]:
        """What each edge adds to both sums of its receiver."""
        difference = x_i - x_j
        d2 = difference.square().sum(-1, keepdim=True)
        m = self.edge(torch.cat([h_i, h_j, d2], -1))
        m = m * self.gate(m)
        return _stabilized(difference) * self.coordinate(m), m

    def aggregate(
        self, inputs: tuple[Tensor, Tensor], index: Tensor, dim_size: int | None = None
    ) -> tuple[Tensor, ...]:
        """Both sums."""
        return tuple(scatter(part, index, dim=0, dim_size=dim_size) for part in inputs)


class Stabilized(nn.Module):
    """`(x_i − x_j) / (d + 1)`, in the place `egnn-pytorch` has for a norm of differences."""

    def forward(self, difference: Tensor) -> Tensor:
        """Shape (B, n, n, d) in and out."""
        return _stabilized(difference)


class Runner(NamedTuple):
    """A stack of layers on one batch.

    Attributes:
        layers: The weights.
        step: `(layer, x, h) ↦ (x, h)` on its graph.
        inputs: Positions and features as this stack takes them.
        pack: From its own form to packed rows.
    """

    layers: nn.ModuleList
    step: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
    inputs: tuple[Tensor, Tensor]
    pack: Callable[[Tensor], Tensor]

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Positions and features after all layers, packed."""
        x, h = self.inputs
        for layer in self.layers:
            x, h = self.step(layer, x, h)
        return self.pack(x), self.pack(h)

    def forward(self) -> None:
        """Values only."""
        with torch.no_grad():
            self.outputs()

    def backward(self) -> None:
        """Values and gradients by weights, positions and features."""
        for leaf in (*self.inputs, *self.layers.parameters()):
            leaf.grad = None
        x, h = self.outputs()
        (x.square().mean() + h.square().mean()).backward()

    def results(self) -> tuple[Tensor, ...]:
        """Outputs and the gradients by the inputs."""
        self.backward()
        gradients = [self.pack(leaf.grad) for leaf in self.inputs]
        return (*(part.detach() for part in self.outputs()), *gradients)


def compare(rounds: int) -> list[dict[str, Any]]:
    """Forward and forward + backward on each shape and depth."""
    return [row for shape in SHAPES for depth in DEPTHS for row in _rows(shape, depth, rounds)]


def _rows(shape: str, depth: int, rounds: int) -> Iterator[dict[str, Any]]:
    case = f"{shape}, {depth} layer{'s' * (depth > 1)}"
    for peer in PEERS:
        mine, theirs = runner(COUNTERPARTS[peer], shape, depth), runner(peer, shape, depth)
        same = peer != DENSE_OWN
        equal = None
        if same:
            equal = agreement(f"{case}, {peer}", mine.results(), theirs.results())
        for work, ours, other in (
            ("forward", mine.forward, theirs.forward),
            ("forward + backward", mine.backward, theirs.backward),
        ):
            yield contest(case, work, peer, ours, other, rounds, equal, same_function=same)


def runner(name: str, shape: str, depth: int) -> Runner:
    """One contestant; all have the same weights, positions and features."""
    clouds = Segments.of_lengths(SHAPES[shape]())
    source = rng.generator(0, "peers", "egnn")
    x = centred(rng.normal((clouds.rows, 3), torch.zeros(()), source), clouds)
    h = rng.normal((clouds.rows, WIDTH), torch.zeros(()), source)
    with rng.seeded(0, "weights"):
        layers = nn.ModuleList(EGCL(WIDTH, attention=True) for _ in range(depth))
    for layer in layers:
        layer.coordinate_out.weight.data *= 300  # as after training, not as at its start

    if name in (DENSE, DENSE_OWN):
        filled = clouds.to_dense(torch.ones(clouds.rows)) > 0
        mask = None if clouds.uniform else filled
        chosen = _as_published if name == DENSE_OWN else _dense
        return Runner(
            nn.ModuleList(map(chosen, layers)),
            lambda layer, x, h: layer(h, x, mask=mask)[::-1],
            (_leaf(clouds.to_dense(x)), _leaf(clouds.to_dense(h))),
            clouds.from_dense,
        )
    edges = Edges.complete(clouds)
    if name == LOOPS:
        edges = _with_loops(edges)
    inputs = _leaf(x), _leaf(h)
    if name == PYG:
        edge_index = torch.stack([edges.sender, edges.receiver])
        layers = nn.ModuleList(map(MessagePassingLayer, layers))
        return Runner(layers, lambda layer, x, h: layer(x, h, edge_index), inputs, _as_is)
    return Runner(layers, lambda layer, x, h: layer(x, h, edges), inputs, _as_is)


def _networks(layer: EGCL) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential, nn.Sequential]:
    """`φ_e` on `[h_i, h_j, d²]`, its gate, `φ_x` and `φ_h`, with the weights of `layer`."""
    edge = nn.Sequential(
        nn.Linear(2 * WIDTH + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()
    )
    gate = nn.Sequential(nn.Linear(WIDTH, 1), nn.Sigmoid())
    coordinate = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1, bias=False))
    node = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
    first = torch.cat([layer.receiver.weight, layer.sender.weight, layer.scalars.weight], 1)
    edge[0].load_state_dict({"weight": first, "bias": layer.receiver.bias})
    edge[2].load_state_dict(layer.message.state_dict())
    gate[0].load_state_dict(layer.attention.state_dict())
    coordinate[0].load_state_dict(layer.coordinate.state_dict())
    coordinate[2].load_state_dict(layer.coordinate_out.state_dict())
    node.load_state_dict(layer.feature_update.state_dict())
    return edge, gate, coordinate, node


def _dense(layer: EGCL) -> egnn_pytorch.EGNN:
    """An `egnn-pytorch` layer that computes the function of `layer` with self loops."""
    dense = egnn_pytorch.EGNN(dim=WIDTH, m_dim=WIDTH, soft_edges=True)
    dense.edge_mlp, dense.edge_gate, dense.coors_mlp, dense.node_mlp = _networks(layer)
    dense.coors_norm = Stabilized()
    return dense


def _as_published(_: EGCL) -> egnn_pytorch.EGNN:
    """An `egnn-pytorch` layer with its own MLPs: messages of 16, wide hidden layers."""
    with rng.seeded(0, "weights"):
        return egnn_pytorch.EGNN(dim=WIDTH, soft_edges=True)


def _stabilized(difference: Tensor) -> Tensor:
    d2 = difference.square().sum(-1, keepdim=True)
    return difference / ((d2 + DISTANCE_EPSILON).sqrt() + 1)


def _with_loops(edges: Edges) -> Edges:
    every = torch.arange(edges.nodes)
    pairs = torch.stack([torch.cat([edges.sender, every]), torch.cat([edges.receiver, every])])
    return Edges.from_index(pairs, edges.nodes, edges.clouds)


def _leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()


def _as_is(values: Tensor) -> Tensor:
    return values


def _drawn_sizes(count: int) -> Tensor:
    """Sizes like those of QM9's molecules."""
    drawn = rng.normal((count,), torch.zeros(()), rng.generator(0, "sizes"))
    return (18 + 3 * drawn).round().clamp(9, 29).long()
