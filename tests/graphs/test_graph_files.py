"""Graphs in files: round trips, the public layouts, and every way in which a file may be broken."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from tiny_graphs import two_components

from eqflow.edges import Edges
from eqflow.errors import DataError, EmptyData, StorageError, UsageError
from eqflow.graphs import Graph, read_graph, write_graph
from eqflow.graphs.features import from_scipy
from eqflow.graphs.files import edge_weights_in

N = 5


def plain() -> dict[str, np.ndarray]:
    """A graph of five nodes with a repeat, a self loop and a node alone, as eqflow's own layout."""
    return {
        "edge_index": np.array([[0, 1, 1, 2, 2], [1, 2, 2, 2, 0]]),
        "x": np.arange(N * 3.0).reshape(N, 3),
        "y": np.array([0, 1, 0, 2, 1]),
        "train_mask": np.array([1, 1, 0, 0, 0], bool),
        "val_mask": np.array([0, 0, 1, 0, 0], bool),
        "test_mask": np.array([0, 0, 0, 1, 1], bool),
    }


def written(folder, arrays, name="graph.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


def pairs_of(edges: Edges) -> list[tuple[int, int]]:
    return list(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


def assert_same(graph: Graph, other: Graph) -> None:
    assert graph.x.layout is other.x.layout
    assert graph.x.dtype is other.x.dtype
    assert torch.equal(graph.x.to_dense(), other.x.to_dense())
    assert torch.equal(graph.y, other.y)
    assert pairs_of(graph.edges) == pairs_of(other.edges)
    assert torch.equal(graph.edges.clouds.ptr, other.edges.clouds.ptr)
    assert (graph.encoding is None) == (other.encoding is None)
    if graph.encoding is not None:
        assert torch.equal(graph.encoding, other.encoding)
    assert [split.name for split in graph.splits] == [split.name for split in other.splits]
    for split, same in zip(graph.splits, other.splits, strict=True):
        for name, mask in split.parts.items():
            assert torch.equal(mask, same.parts[name])
    assert graph.name == other.name


def exactly(path, dtype=torch.float32) -> Graph:
    return read_graph(path, undirected=False, self_loops=True, dtype=dtype)


# Round trips.


def test_what_is_written_is_read_back(tmp_path):
    graph = two_components()
    write_graph(graph, tmp_path / "new folder" / "a.npz")
    assert_same(exactly(tmp_path / "new folder" / "a.npz"), graph)
    default = read_graph(tmp_path / "new folder" / "a.npz")
    assert sorted(pairs_of(default.edges)) == sorted(pairs_of(graph.edges))
    assert_same(replace(default, edges=graph.edges), graph)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.npz"]


def test_sparse_features_in_float64_and_directed_repeated_edges_come_back(tmp_path):
    matrix = scipy.sparse.csr_matrix(([1 / 3, 2.0], ([0, 4], [7, 2])), shape=(N, 40))
    index = torch.tensor([[0, 0, 3, 4, 2], [1, 1, 3, 0, 2]])
    y = torch.tensor([0, -1, 1, 1, 0])
    x = from_scipy(matrix, torch.float64)
    graph = Graph(x, Edges.from_index(index, N), y, name="directed")
    write_graph(graph, tmp_path / "a.npz")
    assert x.layout is torch.sparse_csr
    assert_same(exactly(tmp_path / "a.npz", torch.float64), graph)


def test_several_graphs_and_a_mere_list_of_nodes_come_back(tmp_path):
    index, ptr = torch.tensor([[0, 1, 3], [1, 0, 4]]), torch.tensor([0, 2, 5])
    y = torch.zeros(N, dtype=torch.int64)
    batch = Graph(torch.ones(N, 2), Edges.from_index(index, N, ptr), y)
    alone = Graph(torch.ones(N, 2), Edges.from_index(index[:, :0], N), y)
    for graph in (batch, alone):
        write_graph(graph, tmp_path / "a.npz")
        assert_same(exactly(tmp_path / "a.npz"), graph)


def test_a_graph_goes_only_where_it_can(tmp_path):
    with pytest.raises(UsageError, match=r"found the ending '.pt', expected .npz"):
        write_graph(two_components(), tmp_path / "a.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_graph(two_components(), tmp_path / "file" / "a.npz")


# What is read from which arrays.


def test_by_default_edges_become_undirected_without_repeats_and_self_loops(tmp_path):
    graph = read_graph(written(tmp_path, plain()))
    assert sorted(pairs_of(graph.edges)) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert (graph.nodes, graph.name) == (N, "graph")
    assert graph.edges.incoming.lengths.tolist() == [2, 2, 2, 0, 0]
    loops = read_graph(tmp_path / "graph.npz", self_loops=True)
    assert set(pairs_of(loops.edges)) - set(pairs_of(graph.edges)) == {(2, 2)}
    listed = read_graph(tmp_path / "graph.npz", undirected=False)
    assert sorted(pairs_of(listed.edges)) == [(0, 1), (1, 2), (1, 2), (2, 0)]
    assert read_graph(tmp_path / "graph.npz", name="five").name == "five"


def csr(prefix: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
    made = scipy.sparse.csr_matrix(matrix)
    parts = {"shape": made.shape, "indptr": made.indptr, "indices": made.indices, "data": made.data}
    return {f"{prefix}_{part}": np.asarray(value) for part, value in parts.items()}


def layouts() -> dict[str, dict[str, np.ndarray]]:
    """The same graph in each layout; the repeat can be in lists alone."""
    own = plain()
    adjacency = np.zeros((N, N), np.float32)
    adjacency[own["edge_index"][0], own["edge_index"][1]] = 2.5
    masks = {f"{part}_masks": own[f"{part}_mask"][None] for part in ("train", "val", "test")}
    small = {"y": own["y"].astype(np.int16), "edges": own["edge_index"].astype(np.int32)}
    return {
        "own": own,
        "own with sparse features": {**own, **csr("x", own["x"])} | {"x": None},
        "small integers": {**csr("x", own["x"]), **small, **masks},
        "gnn-benchmark": {
            **csr("adj", adjacency),
            **csr("attr", own["x"]),
            "labels": own["y"],
            "class_names": np.array(["a", None, "c"], object),
            **masks,
        },
        "heterophilous-graphs": {
            "node_features": own["x"].astype(np.float32),
            "node_labels": own["y"],
            "edges": own["edge_index"].T,
            **masks,
        },
    }


@pytest.mark.parametrize("layout", layouts())
def test_each_layout_holds_the_same_graph(tmp_path, layout):
    arrays = {key: value for key, value in layouts()[layout].items() if value is not None}
    graph = read_graph(written(tmp_path, arrays))
    expected = read_graph(written(tmp_path, plain(), "expected.npz"), name="graph")
    assert_same(graph, replace(expected, splits=graph.splits))
    for name, mask in graph.splits[0].parts.items():
        assert torch.equal(mask, expected.splits[0].parts[name])


def test_sparse_features_without_entries_of_their_own_are_ones(tmp_path):
    arrays = {**plain(), **csr("x", plain()["x"])}
    del arrays["x"], arrays["x_data"]
    x = read_graph(written(tmp_path, arrays)).x.to_dense()
    assert torch.equal(x, (torch.from_numpy(plain()["x"]) != 0).float())


def test_masks_of_several_splits_may_lie_either_way_and_one_serves_all(tmp_path):
    arrays = plain()
    train = np.stack([arrays["train_mask"], np.eye(N, dtype=bool)[0]])
    arrays |= {"train_mask": train, "val_mask": np.stack([arrays["val_mask"]] * 2, 1)}
    graph = read_graph(written(tmp_path, arrays))
    assert [split.name for split in graph.splits] == ["0", "1"]
    for split, mask in zip(graph.splits, train, strict=True):
        assert torch.equal(split.train, torch.from_numpy(mask))
        assert split.validation.tolist() == plain()["val_mask"].tolist()
        assert split.test.tolist() == plain()["test_mask"].tolist()


def test_masks_of_zeros_and_ones_and_labels_in_a_column_will_do(tmp_path):
    arrays = plain()
    arrays |= {"train_mask": arrays["train_mask"].astype(np.uint8), "y": arrays["y"][:, None]}
    graph = read_graph(written(tmp_path, arrays))
    assert graph.splits[0].train.tolist() == plain()["train_mask"].tolist()
    assert graph.y.tolist() == plain()["y"].tolist()


def test_features_are_float32_unless_asked_for(tmp_path):
    path = written(tmp_path, {**plain(), "encoding": np.ones((N, 2))})
    assert read_graph(path).x.dtype is read_graph(path).encoding.dtype is torch.float32
    double = read_graph(path, dtype=torch.float64)
    assert double.x.dtype is double.encoding.dtype is torch.float64


# Broken files and arrays: where, what was found, what is expected.


def nan_at(values, place, value=np.nan):
    values = values.astype(float)
    values[place] = value
    return values


SPARSE = csr("x", plain()["x"])
BROKEN = [
    ({"y": None}, r"found the arrays .*expected labels under exactly one of .*y, labels"),
    ({"edge_index": None}, "expected edges under exactly one of the names edge_index, edges"),
    ({"edges": plain()["edge_index"]}, "expected edges under exactly one"),
    ({"x": None}, "expected features as one of"),
    (SPARSE, r"found x, x_…, expected features as one of"),
    ({"y": plain()["y"].astype(float)}, r"found y \(5,\) of float64, expected \(N,\) of integers"),
    ({"y": np.eye(N)}, r"found y \(5, 5\)"),
    ({"y": plain()["y"] + 2013}, "from 2013 to 2015 on 5 nodes, expected classes numbered from 0"),
    ({"y": plain()["y"] - 2}, "found y from -2 to 0"),
    ({"y": np.zeros(4, int)}, r"found x \(5, 3\) of float64, expected \(4, …\)"),
    ({"x": nan_at(plain()["x"], (3, 1))}, r"found nan in x of node 3 \(and 0 more"),
    ({"x": nan_at(plain()["x"], (3, 1), 1e300)}, "found 1e.300 in x .*finite in float32"),
    ({"x": plain()["x"].astype(str)}, r"found x \(5, 3\) of <U"),
    ({"x": plain()["x"][:, 0]}, r"found x \(5,\)"),
    ({"edge_index": plain()["edge_index"] + 0.5}, r"of float64, expected \(2, E\) of integers"),
    ({"edge_index": plain()["edge_index"].T}, r"found edge_index \(5, 2\).*Transpose it"),
    ({"edge_index": plain()["edge_index"] * 3}, "found edge_index from 0 to 6, expected 0 to 4"),
    ({"edge_index": plain()["edge_index"] - 1}, "found edge_index from -1 to 1"),
    ({"edge_index": plain()["edge_index"].ravel()}, r"found edge_index \(10,\)"),
    ({"val_mask": None}, "found train_mask, test_mask, expected one mask each.*val has 0"),
    ({"val_masks": np.ones((2, N), bool)}, "val has 2"),
    ({"val_mask": plain()["train_mask"]}, "split 0: node 0 and 1 others are in two parts"),
    ({"train_mask": np.array([0, 1])}, r"found train_mask \(2,\) of int64.*mask\[nodes\] = True"),
    ({"train_mask": np.full(N, 0.5)}, "of float64, expected bool"),
    ({"train_mask": np.arange(N)}, "of int64, expected bool"),
    ({"train_mask": np.ones((N, 2), bool), "val_mask": np.ones((N, 3), bool)}, "found 2 splits"),
    ({"encoding": np.ones((3, 2))}, r"found encoding \(3, 2\) of float64, expected \(5"),
    ({"encoding": nan_at(np.ones((N, 2)), (4, 0))}, "found nan in encoding of node 4"),
    ({"ptr": np.array([0, 2, 4])}, "ptr: ends at 4, expected n = 5"),
    ({"ptr": np.array([0, 1, 5])}, "joins two graphs"),
    ({"x": None, **SPARSE, "x_indptr": None}, "found x_shape, x_indices without x_indptr"),
    ({"x": None, **SPARSE, "x_indptr": SPARSE["x_indptr"][::-1]}, "expected it to rise from 0"),
    ({"x": None, **SPARSE, "x_indptr": SPARSE["x_indptr"][1:]}, "and 5 entries of x_indptr"),
    ({"x": None, **SPARSE, "x_shape": np.array([N, 2])}, "found x_indices from 0 to 2, expected 0"),
    ({"x": None, **SPARSE, "x_shape": np.array([N])}, r"found x_shape \[5\]"),
    ({"x": None, **SPARSE, "x_data": np.ones(3)}, r"found x_data \(3,\)"),
    ({"x": None, **SPARSE, "x_data": nan_at(SPARSE["x_data"], 5)}, "nan in x_data of node 2"),
    ({"edge_index": None, **csr("adj", np.ones((N, N + 1)))}, r"found adj_shape \[5, 6\]"),
]


def without(*keys: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in plain().items() if key not in keys}


@pytest.mark.parametrize("features", [{"x": plain()["x"]}, SPARSE], ids=["dense", "sparse"])
def test_where_labels_are_not_needed_each_is_unknown_and_masks_are_left_out(tmp_path, features):
    path = written(tmp_path, {**without("x", "y"), **features})
    with pytest.raises(DataError, match="expected labels"):
        read_graph(path)
    graph = read_graph(path, needs_labels=False)
    assert graph.y.tolist() == [-1] * N
    assert graph.splits == ()
    assert torch.equal(graph.x.to_dense(), torch.from_numpy(plain()["x"]).float())
    labelled = written(tmp_path, plain())
    assert_same(read_graph(labelled, needs_labels=False), read_graph(labelled))


def test_without_labels_the_rest_is_checked_as_ever(tmp_path):
    for arrays, error, words in (
        (without("x", "y"), DataError, "expected features as one of"),
        ({**without("y"), "x": np.ones((0, 3))}, EmptyData, "found no rows of features"),
        ({**without("y"), "edge_index": plain()["edge_index"] * 3}, DataError, "expected 0 to 4"),
    ):
        with pytest.raises(error, match=words):
            read_graph(written(tmp_path, arrays), needs_labels=False)


def test_weights_of_edges_that_differ_are_found_and_nothing_else_is(tmp_path):
    weights = np.arange(5) + 0.5
    for key in ("edge_weight", "edge_weights", "edge_attr", "adj_data"):
        assert edge_weights_in(written(tmp_path, {**plain(), key: weights})) == key
        assert edge_weights_in(written(tmp_path, {**plain(), key: np.ones(5)})) is None
    assert edge_weights_in(written(tmp_path, plain())) is None
    assert edge_weights_in(written(tmp_path, {**plain(), "edge_weight": np.zeros(0)})) is None


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_an_array_that_is_missing_or_malformed_is_named(tmp_path, change, words):
    arrays = {key: value for key, value in (plain() | change).items() if value is not None}
    path = written(tmp_path, arrays)
    with pytest.raises(DataError, match=f"(?s)^{path}: .*{words}"):
        read_graph(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"val_mask": np.zeros(N, bool)}, "'validation': 0"),
        (
            {"y": np.zeros(0, int), "x": np.ones((0, 3)), "edge_index": np.zeros((2, 0))},
            "expected at least one node",
        ),
    ],
)
def test_an_empty_part_or_graph_is_refused(tmp_path, change, words):
    path = written(tmp_path, plain() | change)
    with pytest.raises(EmptyData, match=f"^{path}: .*{words}"):
        read_graph(path)


def test_objects_are_never_unpickled(tmp_path):
    path = written(tmp_path, plain() | {"x": np.array([[None]] * N, object)})
    with pytest.raises(DataError, match=r"found Python objects in x, which would have to be"):
        read_graph(path)
    # Arrays that are not needed are left alone, whatever they are.
    path = written(tmp_path, plain() | {"class_names": np.array([None, "b"], object)})
    assert read_graph(path).nodes == N


def test_a_file_that_is_no_archive_or_a_damaged_one_is_told_apart(tmp_path):
    content = written(tmp_path, plain()).read_bytes()
    path = tmp_path / "broken.npz"
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("y.npy", b"no array")
    damaged = bytearray(content)
    damaged[content.index(b"NUMPY") + 130] ^= 0xFF
    for broken, words in (
        (content[:-40], "found a damaged file .*cut off"),
        (content[: len(content) // 2], "found a damaged file"),
        (bytes(damaged), "found a damaged file .*in edge_index"),
        (other.getvalue(), "found a damaged file|found no|expected"),
        (b"<!DOCTYPE html><html>Not found</html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x80\x04K\x01.", "found a pickle, which is never opened"),
        (b"no archive", "starts with .*Pickles and .pt files are never opened"),
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=words):
            read_graph(path)
    path.write_bytes(b"")
    with pytest.raises(EmptyData, match="empty file"):
        read_graph(path)
    for absent in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_graph(absent)


def test_a_graph_in_which_each_edge_is_listed_once_is_made_undirected(shared_data):
    path = shared_data / "graphs" / "het_wisconsin.npz"
    graph, listed = read_graph(path), read_graph(path, undirected=False)
    assert graph.edges.is_symmetric
    assert (listed.edges.sender < listed.edges.receiver).all()
    assert graph.edges.count == 2 * listed.edges.count
