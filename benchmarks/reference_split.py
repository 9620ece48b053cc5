"""The division of a citation graph that the published code of BLEND takes for Planetoid's.

    python benchmarks/reference_split.py CITESEER OUT.npz

CITESEER is the folder of the raw files of CiteSeer, or of Cora. Asked for Planetoid's split, the
code at github.com/twitter-research/graph-neural-pde keeps the largest connected component unless
told not to, and a division of the component is then drawn, always the same one: 1,500 nodes for
development by the seed 12345, of which 20 a class are for training and the others for validation;
the rest are for test. Nodes without a label count as of class 0, as in PyG. `OUT.npz` holds that
graph with these masks:

    python benchmarks/node_classification.py DATA citeseer data.source=file data.path=OUT.npz
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eqflow.graphs import Graph, Split, largest_component, load_graph, write_graph

SEED, DEVELOPMENT, PER_CLASS = 12345, 1500, 20


def divided(graph: Graph) -> Graph:
    """The largest component with the one split, drawn as NumPy's older generator does."""
    graph, _ = largest_component(replace(graph, splits=()))
    y = graph.y.clamp(min=0).numpy()
    development = np.random.RandomState(SEED).choice(len(y), DEVELOPMENT, replace=False)
    source = np.random.RandomState(SEED)
    masks = np.zeros((3, len(y)), dtype=bool)
    masks[2] = True
    masks[1:, development] = [[True], [False]]
    for label in range(y.max() + 1):
        chosen = source.choice(development[y[development] == label], PER_CLASS, replace=False)
        masks[:2, chosen] = [[True], [False]]
    split = Split(*(torch.from_numpy(mask) for mask in masks), name="seed 12345")
    return replace(graph, y=torch.from_numpy(y), splits=(split,))


def main(folder: Path, out: Path) -> None:
    """Write the graph of a folder so divided."""
    names = [name for name in ("citeseer", "cora") if list(folder.rglob(f"ind.{name}.graph"))]
    graph = divided(load_graph(names[0], folder))
    write_graph(graph, out)
    counts = ", ".join(f"{int(mask.sum())} {name}" for name, mask in graph.splits[0].parts.items())
    print(f"{graph}: {counts} nodes, written to {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
