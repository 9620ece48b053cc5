"""Each row of the table equals a formula that knows nothing of the operator."""

import pytest
import torch
import torch_geometric.nn as pyg
from graph_examples import dense, graphs, states
from tolerances import TOLERANCE

from eqflow.edges import Edges
from eqflow.nn.diffusion import (
    AbstractDiffusion,
    MessagePassing,
    cgnn,
    chebnet,
    deepset,
    dgcnn,
    digl,
    gat,
    monet,
    transformer,
)

CLOSE = TOLERANCE[torch.float64]
C = 4
START = torch.zeros((), dtype=torch.float64)


def layer(field: AbstractDiffusion, x: torch.Tensor, edges: Edges) -> torch.Tensor:
    """One explicit Euler step of length 1."""
    return x + field(START, x, edges, x if field.context_features else None)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)


def index(edges: Edges) -> torch.Tensor:
    return torch.stack([edges.sender, edges.receiver])


@pytest.fixture
def edges() -> Edges:
    return dict(graphs())["irregular"]


@pytest.fixture
def looped(edges: Edges) -> Edges:
    loops = torch.arange(edges.nodes).repeat(2, 1)
    return Edges.from_index(torch.cat([index(edges), loops], 1), edges.nodes)


def test_chebnet_is_pygs(edges: Edges) -> None:
    field, x = chebnet(C).double(), states(edges, C, "chebnet")
    reference = pyg.ChebConv(C, C, K=2, bias=False).double()  # PyG counts terms, not the order
    with torch.no_grad():
        reference.lins[0].weight.copy_((torch.eye(C) - field.damping).t())
        reference.lins[1].weight.copy_(-field.mixing.t())
    close(layer(field, x, edges), reference(x, index(edges)))


def test_gat_is_pygs(looped: Edges) -> None:
    heads = 2
    field, x = gat(C, heads).double(), states(looped, C, "gat")
    reference = pyg.GATConv(C, C // heads, heads, bias=False, add_self_loops=False).double()
    diffusivity = field.attention.diffusivity
    with torch.no_grad():
        reference.lin.weight.copy_(diffusivity.projection.weight)
        reference.att_dst.copy_(diffusivity.receiver.unsqueeze(0))
        reference.att_src.copy_(diffusivity.sender.unsqueeze(0))
        # The heads of GAT stand side by side: W is block diagonal in heads.
        field.mixing.zero_()
        width = C // heads
        for h in range(heads):
            columns = slice(h * width, (h + 1) * width)
            field.mixing[h * C : (h + 1) * C, columns] = diffusivity.projection.weight[columns].t()
    close(layer(field, x, looped), reference(x, index(looped)))


def test_monet_is_a_sum_of_gaussians_each_with_its_mixing(edges: Edges) -> None:
    field, x = monet(C, 3).double(), states(edges, C, "monet")
    degree = edges.incoming.lengths.double()
    kernel = field.attention.diffusivity
    expected = torch.zeros_like(x)
    for h in range(3):
        a = torch.zeros(edges.nodes, edges.nodes, dtype=torch.float64)
        for r, c in zip(edges.receiver.tolist(), edges.sender.tolist(), strict=True):
            u = torch.stack([degree[r] ** -0.5, degree[c] ** -0.5])
            off = (kernel.pseudo(u).tanh() - kernel.mean[h]) / kernel.log_width[h].exp()
            a[r, c] = torch.exp(-off.square().sum() / 2)
        expected = expected + a / a.sum(1, keepdim=True) @ x @ field.mixing[h * C : (h + 1) * C]
    close(layer(field, x, edges), expected)


def test_transformer_is_torchs_attention() -> None:
    heads, n = 2, 6
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n)).t().contiguous()
    edges = Edges.from_index(pairs, n)
    field, x = transformer(C, heads).double(), states(edges, C, "transformer")
    parts = field.attention.diffusivity
    q, k = (p(x).reshape(n, heads, -1).transpose(0, 1) for p in (parts.query, parts.key))
    values = torch.stack([x @ field.mixing[h * C : (h + 1) * C] for h in range(heads)])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, values).sum(0)
    close(layer(field, x, edges), expected)


def test_deepset_sees_no_edges(edges: Edges) -> None:
    field, x = deepset(C).double(), states(edges, C, "deepset")
    close(layer(field, x, edges), x @ (torch.eye(C) - field.damping))
    nothing = Edges.from_index(torch.zeros(2, 0, dtype=torch.int64), edges.nodes)
    close(layer(field, x, nothing), layer(field, x, edges))


def test_digl_is_a_random_walk(edges: Edges) -> None:
    field, x = digl(C).double(), states(edges, C, "digl")
    a = dense(torch.ones(edges.count, dtype=torch.float64), edges)
    close(layer(field, x, edges), a / a.sum(1, keepdim=True) @ x @ field.mixing)


def test_dgcnn_attends_over_nearest_neighbours_of_the_state(edges: Edges) -> None:
    field, x = dgcnn(C, 3).double(), states(edges, C, "dgcnn")
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    near = distance.topk(3, largest=False).indices
    logits = torch.full_like(distance, -torch.inf)
    logits = logits.scatter(1, near, torch.exp(-distance.square() / 2).gather(1, near))
    close(layer(field, x, edges), logits.softmax(1) @ x @ field.mixing)


def test_cgnn_is_its_rate(edges: Edges) -> None:
    field, x = cgnn(C).double(), states(edges, C, "cgnn")
    a = dense(torch.ones(edges.count, dtype=torch.float64), edges)
    root = a.sum(1).rsqrt()
    w = 2 * torch.eye(C, dtype=torch.float64) - field.damping
    rate = (root.unsqueeze(1) * a * root) @ x - x + x @ (w - torch.eye(C)) + x
    close(field(START, x, edges, x), rate)


def test_messages_are_a_sum_over_pairs_and_can_conserve() -> None:
    for name, edges in graphs():
        x = states(edges, C, name)
        field = MessagePassing(C, 5).double()
        expected = torch.zeros_like(x)
        for r, c in zip(edges.receiver.tolist(), edges.sender.tolist(), strict=True):
            hidden = torch.nn.functional.silu(field.receiver(x[r]) + field.sender(x[c]))
            expected[r] += field.out(hidden)
        close(field(START, x, edges), expected)
    edges = dict(graphs())["irregular"]
    conserving = MessagePassing(C, 5, conserving=True).double()
    total = conserving(START, states(edges, C, "sum"), edges).sum(0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=CLOSE)
