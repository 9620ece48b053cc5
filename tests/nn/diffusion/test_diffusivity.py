"""Diffusivities and attention, each against its formula on an edge."""

import math

import pytest
import torch
from graph_examples import dense, graphs, permuted, states
from tolerances import TOLERANCE
from torch.autograd import gradcheck

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.nn.diffusion import (
    AbstractDiffusivity,
    Additive,
    Attention,
    Cosine,
    Distance,
    Exponential,
    GaussianMixture,
    Pearson,
    PositionAndFeature,
    ScaledDot,
    diffusivity_by_name,
)
from eqflow.testing import assert_invariant, clouds

CLOSE = TOLERANCE[torch.float64]
NAMES = (
    "scaled_dot",
    "cosine",
    "pearson",
    "exponential",
    "additive",
    "distance",
    "gaussian_mixture",
)
every_name = pytest.mark.parametrize("name", NAMES)
every_graph = pytest.mark.parametrize(("graph", "edges"), list(graphs()), ids=lambda x: str(x))
C, H, D = 4, 2, 6


def shaken(module: AbstractDiffusivity) -> AbstractDiffusivity:
    """The module in float64 with weights of order 1: no formula is tried where it is flat."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


def formula(module: AbstractDiffusivity, edges: Edges, z: torch.Tensor, e: int) -> list[float]:
    """Logits of one edge, head by head, as the module's docstring has them."""
    r, c = int(edges.receiver[e]), int(edges.sender[e])
    found = []
    for h in range(module.heads):
        if hasattr(module, "query"):
            q, k = (
                (part(z).reshape(len(z), module.heads, -1)[node, h])
                for part, node in ((module.query, r), (module.key, c))
            )
        match module:
            case ScaledDot():
                logit = q @ k / math.sqrt(len(q))
            case Cosine():
                logit = q @ k / (q.norm() * k.norm())
            case Pearson():
                logit = torch.corrcoef(torch.stack([q, k]))[0, 1]
            case Exponential():
                squared = (q - k).square().sum() / module.length_scale[h] ** 2
                logit = module.output_scale[h] ** 2 * torch.exp(-squared / 2)
            case Additive():
                u = module.projection(z).reshape(len(z), module.heads, -1)
                sum_ = module.receiver[h] @ u[r, h] + module.sender[h] @ u[c, h]
                logit = sum_ if sum_ > 0 else 0.2 * sum_
            case Distance():
                squared = (z[r] - z[c]).square().sum() / module.length_scale[h] ** 2
                logit = module.output_scale[h] ** 2 * torch.exp(-squared / 2)
            case GaussianMixture():
                degrees = [
                    max(int((ends == node).sum()), 1) ** -0.5
                    for ends, node in ((edges.receiver, r), (edges.sender, c))
                ]
                p = module.pseudo(torch.tensor(degrees, dtype=z.dtype)).tanh()
                inverse = torch.diag(torch.exp(-2 * module.log_width[h]))
                logit = -(p - module.mean[h]) @ inverse @ (p - module.mean[h]) / 2
        found.append(logit)
    return torch.stack(found)


@every_name
@every_graph
def test_logits_are_those_of_the_formula(name: str, graph: str, edges: Edges) -> None:
    module = shaken(diffusivity_by_name(name, C, H, D))
    z = states(edges, C, graph)
    expected = torch.stack([formula(module, edges, z, e) for e in range(edges.count)])
    # A direction is that of a vector whose square is larger by 1e-12.
    torch.testing.assert_close(module(z, edges), expected, rtol=1e-8, atol=1e-8)


@every_name
@pytest.mark.parametrize("normaliser", ["softmax", "squareplus"])
@pytest.mark.parametrize("over", ["rows", "columns"])
@every_graph
def test_weights_of_rows_or_columns_sum_to_one(
    name: str, normaliser: str, over: str, graph: str, edges: Edges
) -> None:
    attention = Attention(shaken(diffusivity_by_name(name, C, H, D)), normaliser, over)
    a = attention(states(edges, C, graph), edges)
    assert (a > 0).all()
    sums = dense(a, edges).sum(1 if over == "rows" else 0)
    ends = edges.receiver if over == "rows" else edges.sender
    expected = (torch.bincount(ends, minlength=edges.nodes) > 0).double()
    torch.testing.assert_close(sums, expected, rtol=CLOSE, atol=CLOSE)


@every_name
def test_weights_follow_a_permutation_of_the_nodes(name: str) -> None:
    edges = dict(graphs())["irregular"]
    attention = Attention(shaken(diffusivity_by_name(name, C, H, D)))
    z = states(edges, C, name)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    moved = permuted(edges, order)
    expected = dense(attention(z, edges), edges)[order][:, order]
    torch.testing.assert_close(dense(attention(z[order], moved), moved), expected)


@every_name
def test_the_second_graph_of_a_batch_does_not_change_the_first(name: str) -> None:
    edges = dict(graphs())["two graphs"]
    attention = Attention(shaken(diffusivity_by_name(name, C, H, D)), "squareplus", "columns")
    z = states(edges, C, name)
    other = torch.cat([z[:3], 100 * z[3:]])
    first = edges.receiver < 3
    assert torch.equal(attention(z, edges)[first], attention(other, edges)[first])


@every_name
def test_logits_have_derivatives_by_states_and_weights(name: str) -> None:
    edges = dict(graphs())["directed"]
    module = shaken(diffusivity_by_name(name, C, H, D))
    z = states(edges, C, name).requires_grad_()
    weights = [weight.detach().clone().requires_grad_() for weight in module.parameters()]
    names = [key for key, _ in module.named_parameters()]

    def logits(z: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, parameters, (z, edges))

    assert gradcheck(logits, (z, *weights))


@pytest.mark.parametrize("name", ["cosine", "pearson", "exponential"])
def test_a_state_of_zeros_has_finite_logits_and_gradients(name: str) -> None:
    edges = dict(graphs())["ring"]
    module = diffusivity_by_name(name, C, H, D).double()
    z = torch.zeros(edges.nodes, C, dtype=torch.float64, requires_grad=True)
    logits = module(z, edges)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert z.grad.isfinite().all()


def test_the_exponential_kernel_keeps_its_digits_far_from_the_origin() -> None:
    edges = dict(graphs())["irregular"]
    module = shaken(Exponential(C, H, D))
    with torch.no_grad():
        module.key.weight.copy_(module.query.weight)
    z = states(edges, C, "far")
    exact = module(z, edges)
    far = module.float()((z + 1000).float(), edges)
    # The state itself has lost three of seven digits there, and no more is lost.
    torch.testing.assert_close(far.double(), exact, rtol=0, atol=1e-3)


def test_the_kernel_of_positions_does_not_change_with_their_motion() -> None:
    module = shaken(PositionAndFeature(3, 4, H, D))
    for _, batch in clouds():

        def weights(x: torch.Tensor, ptr: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            edges = Edges.complete(ptr)
            features = torch.cat([h, h[:, :1] * 0 + 1], 1)[:, :4]
            features = torch.nn.functional.pad(features, (0, 4 - features.shape[1]))
            logits = module(torch.cat([x, features], 1), edges)
            return torch.stack([logits[edges.receiver == i].sum(0) for i in range(edges.nodes)])

        assert_invariant(weights, batch, group="E(3)")


def test_a_mixture_can_be_of_positions() -> None:
    edges = dict(graphs())["directed"]
    module = shaken(GaussianMixture(2, pseudo_width=3, position_width=2))
    z = states(edges, C, "positions")
    z_features = z.clone()
    z_features[:, 2:] += 1
    assert torch.equal(module(z, edges), module(z_features, edges))
    assert module(z, edges).shape == (edges.count, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: diffusivity_by_name("scaled_dots", C, H, D), "scaled_dot"),
        (lambda: ScaledDot(C, 4, 6), "multiple"),
        (lambda: Additive(C, 0, 6), "at least 1"),
        (lambda: Pearson(C, 4, 4), "two or more channels"),
        (lambda: Attention(Distance(), "softmaxx"), "softmax"),
        (lambda: Attention(Distance(), "softmax", "row"), "rows"),
        (lambda: PositionAndFeature(2, 4, space="spherical"), "hyperbolic"),
    ],
)
def test_wrong_options_are_refused_by_name(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
