"""Cora, CiteSeer and PubMed: papers, the words in them, and the citations between them.

The raw files are pickles, and reading a pickle runs what is in it. They are therefore handed to
PyG's reader only as the very bytes whose SHA-256 is known; all else is refused.

Reference: Revisiting Semi-Supervised Learning with Graph Embeddings (Yang, Cohen, Salakhutdinov,
2016), arXiv:1603.08861.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eqflow import storage
from eqflow.data.download import Progress, fetch
from eqflow.data.qm9 import cache_folder
from eqflow.errors import DataError, UsageError
from eqflow.graphs.adjacency import joined
from eqflow.graphs.features import from_numpy
from eqflow.graphs.graph import Graph, Split

if TYPE_CHECKING:
    import torch_geometric.data

URL = "https://github.com/kimiyoung/planetoid/raw/master/data/"
SETS = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}

# Of the files that PyG's Planetoid downloads from `URL`; those of PubMed were never at hand.
SHA256 = {
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
}
LARGEST = 16 << 20  # bytes of one of them, far above all
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def planetoid(
    name: str,
    path: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Graph:
    """One of the three citation graphs with its public split: 20 papers a class, 500, and 1,000.

    Edges go both ways and are there once; the few self loops and repeats of the raw files are left
    out. All nodes stay: CiteSeer has 48 without edges (6 of them validation nodes, 12 test nodes),
    and 15 others with neither words nor a label. PyG gives these 15 the class 0; here their label
    is −1, so that no random split trains on or counts it.

    Args:
        name: `cora` (2,708 nodes), `citeseer` (3,327) or `pubmed` (19,717).
        path: Folder with the raw files, or with `raw/` or, for example, `Cora/raw/` in it. It is
            only read. Where None, the files are downloaded once.
        cache: Folder for the download; `$EQFLOW_CACHE`, else `~/.cache/eqflow`, where None.
        progress: Called with the bytes received and those expected during a download.

    Raises:
        UsageError: If the name is another.
        DataError: If a file is missing, or is not the very file whose SHA-256 is known; those of
            PubMed are not, so that PubMed has to be converted first.
        StorageError: If the cache cannot be written.
    """
    key = name.lower()
    if key not in SETS:
        raise UsageError(f"planetoid: found the name {name!r}, expected one of {', '.join(SETS)}.")
    files = [f"ind.{key}.{part}" for part in PARTS]
    if not SHA256.keys() >= set(files):
        raise _unknown(key, path)
    if path is None:
        folder = cache_folder(cache) / "planetoid"
        for file in files:
            fetch(URL + file, folder / file, SHA256[file], progress, LARGEST)
    else:
        folder = _folder(Path(path), key)
    return _graph(_read({file: _verified(folder / file) for file in files}, key), key)


def _folder(path: Path, key: str) -> Path:
    """Where the raw files are, at `path` or below it."""
    first = f"ind.{key}.{PARTS[0]}"
    tried = [path, path / "raw", path / SETS[key] / "raw", path / key / "raw"]
    for folder in tried:
        if (folder / first).is_file():
            return folder
    raise DataError(
        f"{path}: found no {first} there, in raw/ or in {SETS[key]}/raw/, expected the "
        f"{len(PARTS)} raw files of {SETS[key]}. Download them from {URL}, or give no path."
    )


def _unknown(key: str, path: str | Path | None) -> DataError:
    return DataError(
        f"{path or URL}: found no SHA-256 to know the raw files of {SETS[key]} by. They are "
        "pickles, which run what is in them, and are not opened. Where you trust them, convert "
        "them once: eqflow.graphs.write_graph(eqflow.graphs.from_pyg(torch_geometric.datasets."
        f"Planetoid('{SETS[key]}', '{SETS[key]}')[0]), '{key}.npz'), and pass {key}.npz to "
        "eqflow.graphs.load_graph as path."
    )


def _verified(path: Path) -> bytes:
    """The content of a raw file, which is the known one."""
    expected = SHA256[path.name]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected a raw file of {URL}."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: found {len(content)} bytes with the SHA-256 {found}, expected {expected}. "
            f"It is another file and is not opened. Download it again from {URL}{path.name}, or "
            "convert your graph to .npz with eqflow.graphs.write_graph."
        )
    return content


def _read(contents: dict[str, bytes], key: str) -> torch_geometric.data.Data:
    """PyG's reading of the raw files, from copies that no one else can have changed since."""
    from torch_geometric.io import read_planetoid_data

    with tempfile.TemporaryDirectory(prefix="eqflow-") as folder, warnings.catch_warnings():
        # The reader changes the filters for good, and numpy minds how old the pickles are.
        warnings.simplefilter("ignore")
        for file, content in contents.items():
            storage.write_bytes(Path(folder) / file, content)
        return read_planetoid_data(folder, key)


def _graph(data: torch_geometric.data.Data, key: str) -> Graph:
    y = data.y.clone()
    # Test papers have the last numbers; CiteSeer's leave gaps, which the reader fills with zeros.
    tested = data.test_mask.nonzero().squeeze(1)
    gap = torch.zeros_like(data.test_mask)
    gap[int(tested.min()) :] = True
    y[gap & ~data.test_mask] = -1
    return Graph(
        from_numpy(data.x.numpy()),
        joined(data.edge_index, len(y)),
        y,
        splits=(Split(data.train_mask, data.val_mask, data.test_mask, "public"),),
        name=key,
    )
