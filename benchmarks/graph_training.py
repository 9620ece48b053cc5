"""What a training epoch of GRAND and BLEND costs on Cora, against a port as published.

    python benchmarks/graph_training.py DATA [rounds=5]

DATA is a folder of raw Planetoid files. Both sides take the published settings and the same
weights; the port solves by torchdiffeq's dopri5 at the published tolerances. An epoch is forward,
loss and backward, without the optimizer; an evaluation is one of the right-hand side, without
gradients. How far each side's logits are from those of a solve in
float64 at 1e-10 says what its accuracy is; dropout is off for that. eqflow takes the exponential
method, and its own dopri5 at the published tolerances.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from harness import race, write_results
from published_diffusion import PublishedDiffusion, Settings
from torch import Tensor
from torch.nn import functional as F

from eqflow import rng
from eqflow.flows import Solver
from eqflow.graphs import Graph, load_graph
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.graphs.encoder import NodeDecoder, NodeEncoder
from eqflow.graphs.ppr import ppr_encoding
from eqflow.nn import BLEND, GRAND, with_self_loops

# Published for Cora, on which BLEND's code runs GRAND's settings; tolerances in units of 1e-7 and
# 1e-9 times a scale of 821.97.
GRAND_L = Settings(80, 0, 8, 128, 18.2948, 8.2197e-5, 8.2197e-7, 0.0469, 0.5, True, False)
CASES = {
    "GRAND-l": GRAND_L,
    "GRAND-nl": replace(GRAND_L, nonlinear=True),
    "BLEND": replace(GRAND_L, width=64, position_width=16),
    "BLEND, nonlinear": replace(GRAND_L, width=64, position_width=16, nonlinear=True),
}
# Steps of the exponential midpoint for the nonlinear ones.
STEPS = 8


def ours(graph: Graph, settings: Settings) -> DiffusionClassifier:
    """The classifier of eqflow with these settings."""
    s = settings
    options = {
        "heads": s.heads,
        "attention_width": s.attention_width,
        "normaliser": "squareplus",
        "over": "columns",
        "nonlinear": s.nonlinear,
    }
    with rng.seeded(0, "benchmarks", "graph_training"):
        field = (
            BLEND(s.position_width, s.width, **options)
            if s.position_width
            else GRAND(s.width, **options)
        )
        encoding = graph.encoding.shape[1] if s.position_width else 0
        encoder = NodeEncoder(
            graph.features, s.width, encoding, s.position_width, dropout=s.input_dropout
        )
        decoder = NodeDecoder(s.width + s.position_width, graph.classes, dropout=s.dropout)
        # As after some training: attention that differs from edge to edge, and a source.
        with torch.no_grad():
            for projection in (field.attention.diffusivity.query, field.attention.diffusivity.key):
                projection.weight.mul_(20)
            field.rates.beta.fill_(0.3)
    solver = Solver("exponential", rtol=1e-4, atol=1e-4, steps=STEPS)
    return DiffusionClassifier(field, encoder, decoder, s.time, solver)


def port_of(
    classifier: DiffusionClassifier, graph: Graph, settings: Settings
) -> PublishedDiffusion:
    """The port with the same weights; its state has features first, ours positions."""
    encoding = graph.encoding.shape[1] if settings.position_width else 0
    port = PublishedDiffusion(graph.features, graph.classes, encoding, settings)
    field = classifier.field
    order = torch.arange(settings.width + settings.position_width).roll(-settings.position_width)
    with torch.no_grad():
        port.encode.weight.copy_(classifier.encoder.of_features.weight)
        port.encode.bias.copy_(classifier.encoder.of_features.bias)
        if port.place is not None:
            port.place.weight.copy_(classifier.encoder.of_positions.weight)
            port.place.bias.copy_(classifier.encoder.of_positions.bias)
        for name in ("query", "key"):
            part, own = getattr(port, name), getattr(field.attention.diffusivity, name)
            part.weight.copy_(own.weight[:, order])
            part.bias.copy_(own.bias)
        port.alpha.copy_(field.rates.alpha)
        port.beta.copy_(field.rates.beta)
        port.decode.weight.copy_(classifier.decoder.out.weight[:, order])
        port.decode.bias.copy_(classifier.decoder.out.bias)
    return port


def exact_logits(classifier: DiffusionClassifier, graph: Graph) -> Tensor:
    """In float64, to 1e-10."""
    tight = copy.deepcopy(classifier).double().eval()
    method = "exponential" if classifier.field.is_linear else "dopri5"
    tight.solver = Solver(method, rtol=1e-10, atol=1e-10, step_limit=100_000)
    with torch.no_grad():
        return tight(graph)


def evaluations_of(
    classifier: DiffusionClassifier, port: PublishedDiffusion, graph: Graph, edge_index: Tensor
) -> dict[str, Callable[[], None]]:
    """One evaluation of the right-hand side of each, without gradients."""
    with torch.no_grad():
        z = classifier.encoder.eval()(graph).clone()
    time = torch.zeros(())
    field = classifier.field
    constant = field.coefficients(time, z, graph.edges, z) if field.is_linear else None
    published = port.rate(z, edge_index)

    @torch.no_grad()
    def ported() -> None:
        published(time, z)

    @torch.no_grad()
    def own() -> None:
        constant.velocity(z) if constant else field(time, z, graph.edges, z)

    return {"published": ported, "eqflow": own}


def main(folder: Path, rounds: int) -> None:
    """Compare and write the results."""
    torch.set_num_threads(1)
    plain = load_graph("cora", folder)
    plain = plain.with_edges(with_self_loops(plain.edges))
    encoded = plain.with_encoding(ppr_encoding(plain.edges).float())
    edge_index = torch.stack([plain.edges.receiver, plain.edges.sender])
    dense = plain.x.to_dense()
    split = plain.splits[0]
    results = {}
    for name, settings in CASES.items():
        graph = encoded if settings.position_width else plain
        classifier = ours(graph, settings)
        port = port_of(classifier, graph, settings)
        encoding = graph.encoding.to_dense() if settings.position_width else None

        stepped = copy.deepcopy(classifier)
        stepped.solver = Solver("dopri5", rtol=settings.rtol, atol=settings.atol)

        def own_epoch(model: DiffusionClassifier = classifier, graph: Graph = graph) -> None:
            model.train()
            with rng.seeded(0, "dropout"):
                logits = model(graph)
            F.cross_entropy(logits[split.train], graph.y[split.train]).backward()

        def published_epoch(
            model: PublishedDiffusion = port, encoding: Tensor | None = encoding
        ) -> None:
            model.train()
            with rng.seeded(0, "dropout"):
                logits = model(dense, encoding, edge_index)
            F.cross_entropy(logits[split.train], plain.y[split.train]).backward()

        exact = exact_logits(classifier, graph)
        with torch.no_grad():
            port.eval()
            classifier.eval()
            port.evaluations = 0
            errors = {
                "published": float((port(dense, encoding, edge_index) - exact).abs().max()),
                "eqflow": float((classifier(graph) - exact).abs().max()),
                "eqflow, dopri5": float((stepped.eval()(graph) - exact).abs().max()),
            }
            evaluations = {
                "published": port.evaluations,
                "eqflow": classifier.classify(graph).evaluations,
                "eqflow, dopri5": stepped.classify(graph).evaluations,
            }
        seconds = race(
            {
                "published": published_epoch,
                "eqflow": own_epoch,
                "eqflow, dopri5": lambda model=stepped, epoch=own_epoch: epoch(model),
            },
            rounds,
            steady=True,
        )
        each = race(evaluations_of(classifier, port, graph, edge_index), 3 * rounds, steady=True)
        ratio = seconds["published"] / seconds["eqflow"]
        results[name] = {
            "seconds": seconds,
            "ratio": ratio,
            "ratio_at_the_published_tolerance": seconds["published"] / seconds["eqflow, dopri5"],
            "seconds_of_an_evaluation": each,
            "ratio_of_an_evaluation": each["published"] / each["eqflow"],
            "attention_evaluations": evaluations,
            "largest_error_of_logits": errors,
            "largest_logit": float(exact.abs().max()),
        }
        same = seconds["published"] / seconds["eqflow, dopri5"]
        print(
            f"{name:18} by dopri5 at the published tolerances {same:.1f} times, error "
            f"{errors['eqflow, dopri5']:.1e} in {evaluations['eqflow, dopri5']} evaluations"
        )
        print(
            f"{name:18} epoch {1e3 * seconds['published']:7.0f} ms published, "
            f"{1e3 * seconds['eqflow']:6.0f} ms here: {ratio:4.1f} times; error of logits "
            f"{errors['published']:.1e} and {errors['eqflow']:.1e} "
            f"({evaluations['published']} and {evaluations['eqflow']} evaluations); an evaluation "
            f"{1e3 * each['published']:.1f} and {1e3 * each['eqflow']:.1f} ms"
        )
    write_results("graph_training", {"rounds": rounds, "cases": results})


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[2:])
    main(Path(sys.argv[1]), int(words.get("rounds", 5)))
