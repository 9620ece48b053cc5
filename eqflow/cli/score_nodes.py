"""`eqflow score` of a run that classifies nodes: the class of each node, and how sure of it."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from eqflow import storage
from eqflow.cli.schemas import ScoreConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_classifier, overridden
from eqflow.errors import DataError, ExitCode, NumericalError, UsageError
from eqflow.flows.diffusion_arguments import is_linear
from eqflow.graphs import Graph, Split
from eqflow.graphs.diffusion_classifier import DiffusionClassifier
from eqflow.train.node_data import digest, divided, moved, notices_of, prepared
from eqflow.train.weights import node_config_of

# Options of `eqflow score` that are of densities alone.
OF_DENSITIES = ("draws", "published_actnorm", "divergence", "exact_atoms")


def run(config: ScoreConfig, out: Path) -> ExitCode:
    """Classify, write a row a node, and say the accuracy where labels are known."""
    _require_of_nodes(config)
    classifier, statistics = load_classifier(config.run, config.device, config.threads)
    changes = {key: value for key, value in asdict(config.solver).items() if value is not None}
    if isinstance(classifier, DiffusionClassifier):
        linear = is_linear(classifier.field)
        classifier.solver = overridden(classifier.solver, config.solver, is_linear=linear)
    elif changes:
        raise UsageError(
            f"{', '.join(f'solver.{key}' for key in changes)}: found for a model of layers, which "
            "has no solver. Leave it out."
        )
    terminal = Terminal()
    graph, places, split = _graph(config, statistics, terminal)
    if graph.features != classifier.features:
        raise DataError(
            f"{graph.name}: found {graph.features:,} features of a node, expected the "
            f"{classifier.features:,} of the run. Give a graph of the same kind."
        )
    storage.require_writable(out.parent)
    terminal.line(f"score {graph.nodes:,} nodes of {graph.name} under {config.run}, to {out}")
    device = next(classifier.parameters()).device
    with torch.no_grad():
        logits = classifier(moved(graph, device)).double().cpu()
    if not bool(logits.isfinite().all()):
        broken = (~logits.isfinite()).any(1).nonzero().squeeze(1)
        raise NumericalError(
            f"{graph.name}: the logits of node {int(broken[0])} and {len(broken) - 1} others are "
            "not finite; nothing was written."
        )
    storage.write_text(out, _csv(logits, graph.y, places, split))
    for line in _accuracies(logits, graph.y, split):
        terminal.line(line)
    if not bool((graph.y >= 0).any()):
        terminal.line("no node has a label: these are predictions, without an accuracy")
    if beyond := int((graph.y >= classifier.classes).sum()):
        terminal.line(
            f"notice: {beyond:,} nodes have labels up to {int(graph.y.max())}, beyond the "
            f"{classifier.classes} classes of the run (0 to {classifier.classes - 1}), and count "
            "as wrong"
        )
    terminal.line(f"done: {out}")
    return ExitCode.DONE


def _require_of_nodes(config: ScoreConfig) -> None:
    given = [name for name in OF_DENSITIES if getattr(config, name) is not None]
    if config.data.structures is not None:
        given.append("data.structures")
    given += ["convergence"] * config.convergence + ["fallback"] * (not config.fallback)
    if given:
        raise UsageError(
            f"{', '.join(given)}: found for a run that classifies nodes, which has no density. "
            "Leave it out."
        )


def _graph(
    config: ScoreConfig, statistics: dict[str, object], terminal: Terminal
) -> tuple[Graph, Tensor, Split | None]:
    """The graph as the classifier takes it, its nodes' places in the file, and the run's split.

    There is a split where the graph is that of the run.
    """
    trained = node_config_of(config.run)
    path = config.data.path
    if path is not None:
        source = config.data.source
        if source is None:
            source = trained.data.source if Path(path).is_dir() else "file"
        trained = replace(trained, data=replace(trained.data, source=source, path=path))
    elif config.data.source is not None:
        raise UsageError("data.source: found without data.path, expected both or neither.")
    graph, places = prepared(trained, terminal.line, needs_labels=False)
    for line in notices_of(trained):
        terminal.line(line)
    if digest(graph) == statistics.get("digest"):
        return graph, places, divided(trained, graph, places).split
    terminal.line("another graph than that of the run: no node is known to be of a part")
    if trained.encoding.name in ("deepwalk", "poincare", "ppr", "laplacian"):
        terminal.line(
            f"notice: {trained.encoding.name} is made anew for this graph: its channels need not "
            "mean what they meant to the run"
        )
    return graph, places, None


def _csv(logits: Tensor, y: Tensor, places: Tensor, split: Split | None) -> str:
    """A row a node: its place in the file, class, and probability of every class."""
    probability = logits.softmax(1)
    confidence, predicted = probability.max(1)
    entropy = -torch.special.xlogy(probability, probability).sum(1)
    parts = [""] * len(logits)
    if split is not None:
        for name, mask in split.parts.items():
            for node in mask.nonzero().squeeze(1).tolist():
                parts[node] = name
    classes = [f"probability_{k}" for k in range(logits.shape[1])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["index", "predicted", "label", "part", "confidence", "entropy", *classes])
    for node in range(len(logits)):
        label = int(y[node])
        writer.writerow(
            [
                int(places[node]),
                int(predicted[node]),
                label if label >= 0 else "",
                parts[node],
                f"{float(confidence[node]):.8g}",
                f"{float(entropy[node]):.8g}",
                *(f"{value:.8g}" for value in probability[node].tolist()),
            ]
        )
    return buffer.getvalue()


def _accuracies(logits: Tensor, y: Tensor, split: Split | None) -> list[str]:
    """A line for each part, or one for all labelled nodes."""
    masks = {"labelled": y >= 0} if split is None else split.parts
    right = logits.argmax(1) == y
    return [
        f"{name}: accuracy {float(right[mask].double().mean()):.4f} over {int(mask.sum()):,} nodes"
        for name, mask in masks.items()
        if bool(mask.any())
    ]
