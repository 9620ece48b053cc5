"""The graph of a run: read, cut down, encoded, rewired, and its nodes divided."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, UsageError
from eqflow.graphs import (
    Graph,
    Split,
    binary_features,
    largest_component,
    load_graph,
    normalised_features,
    random_split,
    unused_edge_weights,
)
from eqflow.graphs.citations import SETS
from eqflow.graphs.sources import SOURCES as PUBLISHED
from eqflow.nn.graph_convolution import with_self_loops
from eqflow.train.node_config import NodeConfig, NodeDataConfig
from eqflow.train.node_encodings import encoded, rewired
from eqflow.train.node_models import BlendConfig

SOURCES = ("file", *SETS, *PUBLISHED)
DOWNLOADED = tuple(SETS)

# Options of each protocol of random splits; the published ones are drawn by nobody.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "planetoid": ("train_per_class",),
    "per_class": ("train_per_class",),
    "development": ("train_per_class", "development"),
    "fraction": (),
}
SPLITS = ("published", *PROTOCOLS)


@dataclass(frozen=True)
class NodeData:
    """The graph of a run.

    Attributes:
        graph: As a classifier takes it.
        split: Which nodes are for what.
        places: Of its nodes among those of the file, shape (N,).
        encoding: Name of that which the classifier takes, or "none".
        notices: Lines for people about what was found.
    """

    graph: Graph
    split: Split
    places: Tensor
    encoding: str
    notices: list[str]

    @property
    def statistics(self) -> dict[str, Any]:
        """What a classifier needs to know of its graph, as plain values."""
        encoding = self.graph.encoding
        return {
            "features": self.graph.features,
            "encoding_features": 0 if encoding is None else encoding.shape[1],
            "classes": self.graph.classes,
            "encoding": self.encoding,
            "graph": self.graph.name,
            "split": self.split.name,
            "digest": digest(self.graph),
        }


def load_nodes(config: NodeConfig, announce: Callable[[str], None]) -> NodeData:
    """Read the graph of a configuration and divide its nodes.

    Args:
        config: Which graph and how.
        announce: Called with a line before what takes long.

    Raises:
        DataError: If it cannot be read, has no such split, or a class has no node to train on.
        UsageError: If an option does not fit the source.
    """
    data = divided(config, *prepared(config, announce))
    return replace(data, notices=[*notices_of(config), *data.notices])


def notices_of(config: NodeConfig) -> list[str]:
    """Lines about what the file holds and nothing uses."""
    path = config.data.path
    weights = None if path is None else unused_edge_weights(config.data.source, path)
    if weights is None:
        return []
    return [
        f"notice: {weights} of the file is not used: edges have no weights of their own here, "
        "those of a model come from its attention or from degrees"
    ]


def divided(config: NodeConfig, graph: Graph, places: Tensor) -> NodeData:
    """The nodes of a graph that `prepared` gave, divided by the split of its configuration.

    Raises:
        DataError: If there is no such split, or there are no two classes.
        UsageError: If there is no protocol of that name.
    """
    if graph.classes < 2:
        raise DataError(
            f"{graph.name}: found {graph.classes} classes, expected at least 2: there is nothing "
            "to tell apart. Give labels y from 0 on, −1 where one is not known."
        )
    split = _split(graph, config.data, config.seed)
    notices = []
    if not graph.edges.is_symmetric:
        notices.append("edges are directed: messages go from sender to receiver alone")
    unknown = sorted(set(range(graph.classes)) - set(graph.y[split.train].unique().tolist()))
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        notices.append(f"no training node is of class {shown}: none is ever predicted to be")
    encoding = "none" if graph.encoding is None else config.encoding.name
    return NodeData(graph, split, places, encoding, notices)


def prepared(
    config: NodeConfig, announce: Callable[[str], None], needs_labels: bool = True
) -> tuple[Graph, Tensor]:
    """The graph as a classifier takes it, and the places of its nodes among those read.

    Args:
        config: Which graph and how.
        announce: Called with a line before what takes long.
        needs_labels: Whether a file without labels is refused; else each is unknown, −1.

    Raises:
        DataError: If there is no such file, or it is no graph.
        UsageError: If an option does not fit the source.
    """
    data = config.data
    if data.path is not None and not Path(data.path).exists():
        known = f"the file of {data.source}, or the folder it is in"
        raise DataError(
            f"data.path: found nothing at {data.path}, expected "
            f"{'an .npz of a graph' if data.source == 'file' else known}. Check the path, which is "
            f"taken from {Path.cwd()} where it is not absolute."
        )
    if data.path is None and data.source in DOWNLOADED:
        announce(f"{data.source}: downloaded once into $EQFLOW_CACHE or ~/.cache/eqflow")
    graph = load_graph(data.source, data.path, data.undirected, needs_labels=needs_labels)
    places = torch.arange(graph.nodes)
    if data.largest_component:
        # What came with the data may have no node left in a part; it is divided again if asked to.
        kept = graph if data.split == "published" else replace(graph, splits=())
        graph, places = largest_component(kept)
    if data.binary_features:
        graph = binary_features(graph)
    if data.normalise_features:
        graph = normalised_features(graph)
    encoding = encoded(graph, config.encoding, config.seed, announce)
    graph = graph.with_edges(rewired(graph, encoding, config.rewiring))
    if data.self_loops:
        graph = graph.with_edges(with_self_loops(graph.edges))
    # Only a model of positions takes them; others have edges made by them at most.
    return graph.with_encoding(encoding if isinstance(config.model, BlendConfig) else None), places


def files_read(source: str, folder: Path) -> list[Path]:
    """The files of a folder that a known source is read from, by name."""
    if source in SETS:
        return sorted(folder.rglob(f"ind.{source}.*"), key=lambda file: file.name)
    names = PUBLISHED[source].names if source in PUBLISHED else ()
    return [path for name in names if (path := folder / f"{name}.npz").is_file()]


def digest(graph: Graph) -> str:
    """SHA-256 of edges and labels: whether two graphs are one, wherever they were read from."""
    found = hashlib.sha256()
    for part in (graph.edges.incoming.ptr, graph.edges.sender, graph.y):
        found.update(part.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def moved(graph: Graph, device: torch.device) -> Graph:
    """The same graph on a device."""
    if graph.edges.sender.device == device:
        return graph
    pairs = torch.stack([graph.edges.sender, graph.edges.receiver]).to(device)
    edges = Edges.from_index(pairs, graph.nodes, graph.edges.clouds.ptr.to(device))
    encoding = None if graph.encoding is None else graph.encoding.to(device)
    splits = tuple(split.to(device) for split in graph.splits)
    return Graph(graph.x.to(device), edges, graph.y.to(device), encoding, splits, graph.name)


def _split(graph: Graph, config: NodeDataConfig, seed: int) -> Split:
    if config.split not in SPLITS:
        raise UsageError(
            f"data.split: found {config.split!r}, expected one of {', '.join(SPLITS)}."
        )
    if config.split == "published":
        if not graph.splits:
            raise DataError(
                f"{graph.name}: found no split in the data with data.split=published. Add "
                "train_mask, val_mask and test_mask to the file, or draw one: data.split="
                f"{' or '.join(PROTOCOLS)}."
            )
        if config.split_index >= len(graph.splits):
            raise UsageError(
                f"data.split_index: found {config.split_index}, expected 0 to "
                f"{len(graph.splits) - 1}: {graph.name} comes with {len(graph.splits)} splits."
            )
        return graph.splits[config.split_index]
    chosen = seed if config.split_seed is None else config.split_seed
    sizes = {name: getattr(config, name) for name in PROTOCOLS[config.split]}
    try:
        return random_split(graph, chosen, config.split, **sizes)
    except EmptyData:
        raise
    except DataError as error:
        if not sizes:
            raise
        keys = " and ".join(f"data.{name} ({size})" for name, size in sizes.items())
        raise DataError(
            f"{error} Its key{'s are' if len(sizes) > 1 else ' is'} {keys}; a small graph, or one "
            "with rare classes, is better divided by data.split=fraction."
        ) from error
