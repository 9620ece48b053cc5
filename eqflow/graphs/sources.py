"""Data sets of node classification by their names, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eqflow.data.download import Progress
from eqflow.errors import DataError, UsageError
from eqflow.graphs.agreement import homophily
from eqflow.graphs.citations import SETS, planetoid
from eqflow.graphs.files import edge_weights_in, read_graph
from eqflow.graphs.graph import Graph

BENCHMARK = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz/"
HETEROPHILOUS = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data/"

# Texas and Cornell have as many nodes, features and classes as each other; joined pairs tell.
PAIRS = {"texas": 279, "cornell": 277}
# Edge homophily of the Cornell that carries the features and labels of Texas is 0.30.
CORNELL_BELOW = 0.2


@dataclass(frozen=True)
class Source:
    """Where a data set is published and how to tell it.

    Attributes:
        nodes: How many it has.
        address: Of the published file.
        names: Of the file in a folder, without `.npz`, the first that is there.
        undirected: Whether the file lists each edge once, in a direction that means nothing.
    """

    nodes: int
    address: str
    names: tuple[str, ...]
    undirected: bool = False


def _benchmark(nodes: int, name: str, *others: str) -> Source:
    return Source(nodes, f"{BENCHMARK}{name}.npz", (*others, name))


def _heterophilous(nodes: int, name: str) -> Source:
    return Source(nodes, f"{HETEROPHILOUS}{name}.npz", (name, f"het_{name}"), undirected=True)


SOURCES = {
    "photo": _benchmark(7_650, "amazon_electronics_photo", "photo", "amazon_photo"),
    "computers": _benchmark(
        13_752, "amazon_electronics_computers", "computers", "amazon_computers"
    ),
    "coauthor_cs": _benchmark(18_333, "ms_academic_cs", "coauthor_cs"),
    **{
        name: _heterophilous(nodes, name)
        for name, nodes in (
            ("texas", 183),
            ("cornell", 183),
            ("wisconsin", 251),
            ("actor", 7_600),
            ("chameleon", 2_277),
            ("squirrel", 5_201),
            ("chameleon_filtered", 890),
            ("squirrel_filtered", 2_223),
        )
    },
}
PLANETOID_NODES = {"cora": 2_708, "citeseer": 3_327, "pubmed": 19_717}


def load_graph(
    source: str,
    path: str | Path | None = None,
    undirected: bool = True,
    self_loops: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    needs_labels: bool = True,
) -> Graph:
    """A data set of node classification by name.

    | name | what | splits |
    |---|---|---|
    | `cora`, `citeseer`, `pubmed` | papers and citations, see `planetoid` | public |
    | `photo`, `computers` | goods bought together (Shchur et al., 2018, arXiv:1811.05868) | none |
    | `coauthor_cs` | authors and joint papers (the same) | none |
    | `texas`, `cornell`, `wisconsin` | web pages (Pei et al., 2020, arXiv:2002.05287) | 10 |
    | `actor` | actors on common pages (the same) | 10 |
    | `chameleon`, `squirrel` | Wikipedia (Rozemberczki et al., 2019, arXiv:1909.13021) | 10 |
    | `chameleon_filtered`, `squirrel_filtered` | those without repeated nodes | 10 |
    | `file` | any `.npz` with the arrays of `eqflow.graphs.arrays` | those in it |

    Chameleon and Squirrel as first published hold many nodes twice, in training and test parts:
    their figures are not comparable with those of the filtered sets of Platonov et al. (2023),
    arXiv:2302.11640. The Cornell that is commonly distributed, also by PyG, carries the features
    and labels of Texas on the edges of Cornell, with an edge homophily of 0.30; the true one has
    0.12, and the other is refused under this name.

    Args:
        source: One of the names above.
        path: The file, or a folder that holds it under its own or its upstream name; for
            Planetoid the folder of raw files, or an `.npz` with the same graph. Only Cora and
            CiteSeer are downloaded where it is None.
        undirected: Whether the reverse of each edge is added and repeats are merged. With False,
            the Amazon and Coauthor sets and `file` keep the directions and repeats listed; the
            others are undirected graphs and refuse it.
        self_loops: Whether edges from a node to itself stay; Planetoid's are left out anyway.
        cache: Folder for downloads; `$EQFLOW_CACHE`, else `~/.cache/eqflow`, where None.
        progress: Called with the bytes received and those expected during a download.
        needs_labels: Whether a file without labels is refused; else each is unknown, −1, and its
            splits are left out.

    Raises:
        UsageError: If the name is not known, needs a path, or is undirected by its nature.
        DataError: If a file is missing, malformed, or of another data set.
    """
    known = [*SETS, *SOURCES, "file"]
    if source not in known:
        raise UsageError(
            f"load_graph: found the source {source!r}, expected one of {', '.join(known)}."
        )
    if not undirected and (source in SETS or (source != "file" and SOURCES[source].undirected)):
        raise UsageError(
            f"load_graph: found undirected=False for {source}, which is published without "
            "directions: expected True."
        )
    file = None if path is None else _file(source, Path(path))
    if source in SETS and (file is None or file.suffix.lower() != ".npz"):
        return planetoid(source, file, cache, progress)
    if file is None:
        raise UsageError(f"load_graph: found no path for {source}. {_advice(source)}")
    name = None if source == "file" else source
    graph = read_graph(file, undirected, self_loops, name, needs_labels=needs_labels)
    if source != "file":
        _require_identity(source, graph, file)
    return graph


def unused_edge_weights(source: str, path: str | Path) -> str | None:
    """The array of edge weights in the file of a source, None where there is none.

    Edges have no weights here: a file that says some gets them ignored, which its owner should
    know. Weights that are all the same say nothing.

    Args:
        source: As in `load_graph`.
        path: As there.
    """
    file = _file(source, Path(path))
    return edge_weights_in(file) if file.suffix.lower() == ".npz" else None


def _advice(source: str) -> str:
    if source not in SOURCES:
        return "Pass the path of an .npz file."
    return (
        f"Download {SOURCES[source].address} and pass path=… with the file, or the folder it is in."
    )


def _file(source: str, path: Path) -> Path:
    """The file at `path` or in it; for Planetoid the folder itself where no `.npz` is in it."""
    if not path.is_dir():
        return path
    if source in SETS:
        converted = path / f"{source}.npz"
        return converted if converted.is_file() else path
    if source == "file":
        raise DataError(f"{path}: found a folder, expected an .npz file for source=file.")
    names = SOURCES[source].names
    for name in names:
        if (path / f"{name}.npz").is_file():
            return path / f"{name}.npz"
    filtered = f"{source}_filtered"
    there = [name for name in SOURCES.get(filtered, SOURCES[source]).names if name not in names]
    beside = [f"{name}.npz" for name in there if (path / f"{name}.npz").is_file()]
    raise DataError(
        f"{path}: found none of {', '.join(f'{name}.npz' for name in names)}. {_advice(source)}"
        + (f" {beside[0]} there is source={filtered}, another data set." if beside else "")
    )


def _require_identity(source: str, graph: Graph, file: Path) -> None:
    nodes = PLANETOID_NODES[source] if source in SETS else SOURCES[source].nodes
    if graph.nodes != nodes:
        raise DataError(
            f"{file}: found {graph.nodes:,} nodes, expected the {nodes:,} of {source}. "
            "Pass source=file for another data set, or a part of one."
        )
    pairs = int((graph.edges.sender < graph.edges.receiver).sum())
    other = {count: name for name, count in PAIRS.items() if name != source}.get(pairs)
    if source in PAIRS and other is not None:
        raise DataError(
            f"{file}: found {pairs} pairs of joined nodes, as {other} has, expected the "
            f"{PAIRS[source]} of {source}. Pass source={other} for it (experiment={other}), or "
            "source=file for another data set."
        )
    if source == "cornell" and (found := homophily(graph)) > CORNELL_BELOW:
        raise DataError(
            f"{file}: found an edge homophily of {found:.2f}, expected 0.12 of the true Cornell. "
            "A common distribution has the features and labels of Texas on the edges of Cornell "
            f"(0.30). {_advice(source)} To use this one nevertheless, pass source=file."
        )
