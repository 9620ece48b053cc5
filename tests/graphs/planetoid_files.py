"""Raw files of the form that Planetoid has, for a made-up set of 620 papers."""

import pickle
from pathlib import Path

import numpy as np
import scipy.sparse

NODES, WORDS, CLASSES = 620, 50, 6
GAP = (601, 607)  # Test papers that the files leave out.


def write_raw(folder: Path, key: str = "citeseer") -> None:
    """Eight files: 12 papers to train on, 500 for validation, and 68 to test on, in odd order."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    known = 550
    tested = np.array([i for i in range(known, NODES) if i not in GAP])
    x = (draw.random((NODES, WORDS)) < 0.06).astype(np.float32)
    x[:, 0] = 1
    labels = np.arange(NODES) % CLASSES
    order = draw.permutation(tested)
    one_hot = np.eye(CLASSES, dtype=np.int32)
    ring = {i: [(i + 1) % NODES, (i - 1) % NODES] for i in range(NODES)}
    for i in GAP:
        for j in ring.pop(i):
            ring[j].remove(i)
        ring[i] = []
    ring[3] += [3, 4]  # A self loop and a repeat.
    parts = {
        "x": scipy.sparse.csr_matrix(x[:12]),
        "allx": scipy.sparse.csr_matrix(x[:known]),
        "tx": scipy.sparse.csr_matrix(x[order]),
        "y": one_hot[labels[:12]],
        "ally": one_hot[labels[:known]],
        "ty": one_hot[labels[order]],
        "graph": ring,
    }
    for part, value in parts.items():
        (folder / f"ind.{key}.{part}").write_bytes(pickle.dumps(value))
    (folder / f"ind.{key}.test.index").write_text("".join(f"{i}\n" for i in order))
