"""Classifiers of nodes: laws of their inputs, of the graph, and of what training asks of them."""

from typing import Any

import pytest
import torch
from graph_examples import edges_of, graphs, permuted, states
from tolerances import TOLERANCE

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import DataError, NoDensity, SolverFailed, UsageError
from eqflow.flows import Solver
from eqflow.graphs import Graph
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.graphs.encoder import NodeDecoder, NodeEncoder
from eqflow.graphs.features import from_scipy, to_scipy
from eqflow.graphs.layered_classifier import (
    LayeredClassifier,
    Layers,
    gated,
    remedied,
    residual,
)
from eqflow.graphs.rows import Rows
from eqflow.nn import EntropyAscent, PairNorm
from eqflow.nn.diffusion import BLEND, GRAFF, GRAND

CLOSE = TOLERANCE[torch.float64]
F, P, K, W = 5, 4, 3, 6


def graph_of(edges: Edges, name: str = "test", encoding: bool = False) -> Graph:
    x = states(edges, F, name, "features")
    y = torch.arange(edges.nodes) % K
    return Graph(x, edges, y, states(edges, P, name, "encoding") if encoding else None)


def grand(**options: object) -> DiffusionClassifier:
    encoder = NodeEncoder(F, W, dropout=0.3)
    field = GRAND(W, heads=2, attention_width=4, **options)
    return DiffusionClassifier(
        field, encoder, NodeDecoder(W, K, dropout=0.3), 2.0, Solver("exponential", steps=4)
    )


def blend() -> DiffusionClassifier:
    encoder = NodeEncoder(F, W, P, 2, dropout=0.3, norm=True)
    field = BLEND(2, W, heads=2, attention_width=4)
    decoder = NodeDecoder(W + 2, K, dropout=0.3, hidden_layer=True)
    return DiffusionClassifier(field, encoder, decoder, 2.0, Solver("rk4", steps=4))


def graff() -> DiffusionClassifier:
    encoder = NodeEncoder(F, W)
    return DiffusionClassifier(
        GRAFF(W), encoder, NodeDecoder(W, K), 2.0, Solver("euler", steps=4), ("kinetic",)
    )


def layered(kind: Layers) -> LayeredClassifier:
    return LayeredClassifier(F, K, kind, W, 4)


CLASSIFIERS = {
    "grand": grand,
    "grand, nonlinear": lambda: grand(nonlinear=True),
    "blend": blend,
    "graff": graff,
    "gcn": lambda: layered(remedied()),
    "residual": lambda: layered(residual()),
    "entropic": lambda: layered(remedied(EntropyAscent(1.0, 10.0))),
    "pair norm": lambda: layered(remedied(PairNorm())),
    "gated": lambda: layered(gated()),
}
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def made(name: str) -> AbstractNodeClassifier:
    return CLASSIFIERS[name]().double()


def needs_encoding(name: str) -> bool:
    return name == "blend"


@every_classifier
def test_logits_follow_a_permutation_of_the_nodes(name: str) -> None:
    classifier = made(name).eval()
    graph = graph_of(dict(graphs())["irregular"], name, needs_encoding(name))
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    encoding = None if graph.encoding is None else graph.encoding[order]
    moved = Graph(graph.x[order], permuted(graph.edges, order), graph.y[order], encoding)
    torch.testing.assert_close(classifier(moved), classifier(graph)[order], rtol=1e-9, atol=1e-9)


@every_classifier
def test_a_second_graph_beside_the_first_changes_nothing(name: str) -> None:
    classifier = made(name).eval()
    both = graph_of(dict(graphs())["two graphs"], name, needs_encoding(name))
    alone = Graph(
        both.x[:3],
        edges_of([(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)], [3]),
        both.y[:3],
        None if both.encoding is None else both.encoding[:3],
    )
    # The solver's tolerance is that of a batch.
    torch.testing.assert_close(classifier(both)[:3], classifier(alone), rtol=1e-4, atol=1e-4)


@every_classifier
def test_every_graph_gets_finite_logits_and_gradients(name: str) -> None:
    classifier = made(name).train()
    for graph_name, edges in graphs():
        graph = graph_of(edges, graph_name, needs_encoding(name))
        with rng.seeded(0, "dropout"):
            found = classifier.classify(graph)
        loss = torch.nn.functional.cross_entropy(found.logits, graph.y)
        classifier.zero_grad()
        (loss + sum(found.penalties.values())).backward()
        assert found.logits.shape == (edges.nodes, K)
        assert found.evaluations > 0
        for parameter in classifier.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()


@every_classifier
def test_every_weight_is_trained(name: str) -> None:
    classifier = made(name).train()
    graph = graph_of(dict(graphs())["irregular"], name, needs_encoding(name))
    torch.nn.functional.cross_entropy(classifier(graph), graph.y).backward()
    untrained = [key for key, p in classifier.named_parameters() if p.grad is None]
    assert not untrained


@every_classifier
def test_dropout_is_off_and_penalties_are_not_measured_outside_training(name: str) -> None:
    classifier = made(name).eval()
    graph = graph_of(dict(graphs())["ring"], name, needs_encoding(name))
    assert torch.equal(classifier(graph), classifier(graph))
    assert not classifier.classify(graph).penalties


@every_classifier
def test_other_widths_than_those_it_was_made_for_are_refused(name: str) -> None:
    classifier = made(name)
    graph = graph_of(dict(graphs())["ring"], name, not needs_encoding(name))
    with pytest.raises(DataError, match="positional encoding"):
        classifier(graph)
    narrow = Graph(graph.x[:, :2], graph.edges, graph.y, graph.encoding)
    with pytest.raises(DataError, match="found 2 features"):
        classifier(narrow)


def test_sparse_rows_are_the_dense_ones() -> None:
    dense = (torch.rand(7, 50) < 0.05) * torch.rand(7, 50)
    sparse = from_scipy(to_scipy(dense))
    weight = torch.randn(50, 20, requires_grad=True)
    assert Rows(sparse).is_sparse
    found, expected = Rows(sparse).times(weight), Rows(dense).times(weight)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), weight)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_dropout_of_rows_keeps_the_mean(is_sparse: bool) -> None:
    dense = (torch.rand(7, 50) < 0.05).double()
    rows = Rows(from_scipy(to_scipy(dense), torch.float64) if is_sparse else dense)
    weight = torch.eye(50, dtype=torch.float64)
    with rng.seeded(0, "dropout"):
        draws = torch.stack([rows.times(weight, 0.5) for _ in range(2000)])
    # An entry of 1 becomes 0 or 2: its mean over 2000 draws has a standard error of 0.022.
    assert (draws.mean(0) - dense).abs().max() < 5 * 0.0224
    assert draws.unique().tolist() == [0.0, 2.0]


def test_an_early_state_is_that_of_a_shorter_integration() -> None:
    classifier = made("grand").eval()
    graph = graph_of(dict(graphs())["irregular"])
    early, late = classifier.logits_at(graph, [0.7, 2.0])
    torch.testing.assert_close(late, classifier(graph), rtol=1e-4, atol=1e-4)
    classifier.time = 0.7
    torch.testing.assert_close(early, classifier(graph), rtol=1e-4, atol=1e-4)


def test_kinetic_energy_is_that_of_the_path() -> None:
    classifier = made("graff").train()
    graph = graph_of(dict(graphs())["ring"])
    penalty = classifier.classify(graph).penalties["kinetic"]
    steps = 2000
    path = classifier.path(graph, torch.linspace(0, 2, steps + 1)[1:].tolist())
    energy = (path.diff(dim=0) / (2 / steps)).square().sum(2).mean(1).sum() * 2 / steps
    coarse = DiffusionClassifier(
        classifier.field,
        classifier.encoder,
        classifier.decoder,
        2.0,
        Solver("rk4", steps=100),
        ("kinetic", "jacobian"),
    ).train()
    fine = coarse.classify(graph).penalties
    torch.testing.assert_close(fine["kinetic"], energy, rtol=1e-2, atol=1e-3)
    assert penalty.requires_grad
    assert fine["jacobian"] > 0


def test_points_of_a_ball_are_positions_as_they_are() -> None:
    graph = graph_of(dict(graphs())["ring"], "ball", encoding=True)
    encoder = NodeEncoder(F, W, P, P, in_ball=True).double()
    assert torch.equal(encoder(graph)[:, :P], graph.encoding)
    with pytest.raises(UsageError, match="ball"):
        NodeEncoder(F, W, P, 2, in_ball=True)
    with pytest.raises(UsageError, match="both or neither"):
        NodeEncoder(F, W, 0, 2)


def test_a_solver_that_gives_up_says_so() -> None:
    classifier = grand(nonlinear=True).double().eval()
    classifier.solver = Solver("dopri5", step_limit=3)
    with pytest.raises(SolverFailed, match="step_limit"):
        classifier(graph_of(dict(graphs())["ring"]))


@every_classifier
def test_what_densities_do_is_refused_with_what_a_classifier_does(name: str) -> None:
    classifier: Any = made(name)
    for ability in ("sample", "log_prob", "score", "trajectory"):
        with pytest.raises(NoDensity, match=rf"found \.{ability} .* eqflow score"):
            getattr(classifier, ability)(3)
        assert not hasattr(classifier, ability)
    with pytest.raises(AttributeError, match="'other'"):
        _ = classifier.other
    with pytest.raises(UsageError, match=r"type Tensor, expected eqflow\.graphs\.Graph"):
        classifier(torch.ones(3, F))


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        LayeredClassifier(F, K, remedied(), W, 1)
