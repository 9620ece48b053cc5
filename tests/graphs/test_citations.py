"""Planetoid's sets: published counts, PyG's own reading, and no pickle that is not known."""

import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from planetoid_files import CLASSES, GAP, NODES, WORDS, write_raw
from torch_geometric.io import read_planetoid_data

from eqflow import storage
from eqflow.errors import DataError, UsageError
from eqflow.graphs import citations, largest_component, load_graph, planetoid


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Made-up raw files of CiteSeer's form, and their checksums as the known ones."""
    folder = tmp_path / "CiteSeer" / "raw"
    write_raw(folder)
    known = {file.name: storage.sha256_of(file) for file in folder.iterdir()}
    monkeypatch.setattr(citations, "SHA256", known)
    return folder


def test_known_files_are_read_as_pyg_reads_them(raw):
    graph, data = planetoid("CiteSeer", raw), read_planetoid_data(str(raw), "citeseer")
    assert graph.name == "citeseer"
    assert (graph.nodes, graph.features, graph.classes) == (NODES, WORDS, CLASSES)
    assert torch.equal(graph.x.to_dense(), data.x)
    assert {tuple(pair) for pair in data.edge_index.T.tolist()} == set(
        zip(graph.edges.sender.tolist(), graph.edges.receiver.tolist(), strict=True)
    )
    (split,) = graph.splits
    assert split.name == "public"
    assert torch.equal(split.train, data.train_mask)
    assert torch.equal(split.validation, data.val_mask)
    assert torch.equal(split.test, data.test_mask)


def test_papers_that_the_files_leave_out_stay_without_words_edges_and_label(raw):
    graph, data = planetoid("citeseer", raw), read_planetoid_data(str(raw), "citeseer")
    assert (graph.y == -1).nonzero().squeeze(1).tolist() == list(GAP)
    labelled = graph.y >= 0
    assert torch.equal(graph.y[labelled], data.y[labelled])
    for node in GAP:
        assert not graph.x.to_dense()[node].any()
        assert graph.edges.incoming.lengths[node] == 0


def test_edges_go_both_ways_once_without_self_loops(raw):
    edges = planetoid("citeseer", raw).edges
    assert edges.is_symmetric
    assert not (edges.sender == edges.receiver).any()
    pairs = torch.stack([edges.sender, edges.receiver])
    assert pairs.unique(dim=1).shape == pairs.shape
    assert edges.count == 2 * (NODES - 2 * len(GAP))


def test_the_folder_may_be_any_of_three_and_is_only_read(raw):
    before = {path: path.stat().st_mtime_ns for path in raw.parents[1].rglob("*")}
    graphs = [planetoid("citeseer", path) for path in (raw, raw.parent, raw.parents[1])]
    assert all(torch.equal(graph.y, graphs[0].y) for graph in graphs)
    assert {path: path.stat().st_mtime_ns for path in raw.parents[1].rglob("*")} == before


class Trap:
    """A pickle of this writes a file when it is opened."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_is_not_the_known_one_is_never_opened(raw, tmp_path):
    (raw / "ind.citeseer.graph").write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    with pytest.raises(DataError, match=r"graph: found \d+ bytes with the SHA-256 .*not opened"):
        planetoid("citeseer", raw)
    assert not (tmp_path / "opened").exists()
    # The trap would have sprung.
    pickle.loads((raw / "ind.citeseer.graph").read_bytes()).close()  # noqa: S301
    assert (tmp_path / "opened").exists()


def test_pubmed_is_refused_with_the_way_to_convert_it(tmp_path):
    write_raw(tmp_path, "pubmed")
    for path in (tmp_path, None):
        with pytest.raises(DataError, match=r"no SHA-256 .*write_graph\(.*from_pyg.*pubmed.npz"):
            planetoid("pubmed", path)


def test_files_that_are_missing_are_named(raw):
    (raw / "ind.citeseer.ty").unlink()
    with pytest.raises(DataError, match=r"ind.citeseer.ty: cannot be read"):
        planetoid("citeseer", raw)
    (raw / "ind.citeseer.x").unlink()
    with pytest.raises(DataError, match=r"found no ind.citeseer.x there, in raw/ or in CiteSeer"):
        planetoid("citeseer", raw)
    with pytest.raises(UsageError, match="found the name 'dora', expected one of cora"):
        planetoid("dora", raw)


@pytest.fixture
def address(raw):
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(raw))

        def log_message(self, *_) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self.server.requests += 1
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_without_a_path_the_files_are_downloaded_once(raw, address, tmp_path, monkeypatch):
    monkeypatch.setattr(citations, "URL", f"http://127.0.0.1:{address.server_port}/")
    monkeypatch.setenv("EQFLOW_CACHE", str(tmp_path / "cache"))
    told = []
    first = planetoid("citeseer", progress=lambda *now: told.append(now))
    assert address.requests == len(told) == 8
    second = load_graph("citeseer", cache=tmp_path / "cache")
    assert address.requests == 8
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.y, planetoid("citeseer", raw).y)
    assert sorted(path.name for path in (tmp_path / "cache" / "planetoid").iterdir()) == sorted(
        path.name for path in raw.iterdir()
    )


def test_a_download_of_something_else_is_not_kept(raw, address, tmp_path, monkeypatch):
    monkeypatch.setattr(citations, "URL", f"http://127.0.0.1:{address.server_port}/")
    (raw / "ind.citeseer.x").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"ind.citeseer.x: found 14 bytes with the SHA-256"):
        planetoid("citeseer", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "planetoid").iterdir())


PUBLISHED = {
    # nodes, directed edges, words, classes, public split, nodes without edges or label, and nodes
    # and edges of the largest component (Shchur et al., 2018; Gasteiger et al., 2019).
    "cora": (2708, 10556, 1433, 7, [140, 500, 1000], 0, 0, 2485, 5069),
    "citeseer": (3327, 9104, 3703, 6, [120, 500, 1000], 48, 15, 2120, 3679),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sets_at_hand_have_the_published_counts(shared_data, name):
    graph = planetoid(name, shared_data / "planetoid")
    (split,) = graph.splits
    part, _ = largest_component(graph)
    assert PUBLISHED[name] == (
        graph.nodes,
        graph.edges.count,
        graph.features,
        graph.classes,
        [int(mask.sum()) for mask in split.parts.values()],
        int((graph.edges.incoming.lengths == 0).sum()),
        int((graph.y < 0).sum()),
        part.nodes,
        part.edges.count // 2,
    )
    assert graph.y[split.train].bincount().tolist() == [20] * graph.classes


@pytest.mark.parametrize("name", ["Cora", "CiteSeer"])
def test_the_sets_at_hand_are_those_of_pyg(shared_data, name):
    folder = shared_data / "planetoid" / name
    graph, data = planetoid(name, folder), read_planetoid_data(str(folder / "raw"), name)
    assert torch.equal(graph.x.to_dense(), data.x)
    order = (data.edge_index[1] * graph.nodes + data.edge_index[0]).argsort()
    assert torch.equal(
        torch.stack([graph.edges.sender, graph.edges.receiver]), data.edge_index[:, order]
    )
    known = graph.y >= 0
    assert torch.equal(graph.y[known], data.y[known])
    assert not data.y[~known].any()
    assert torch.equal(graph.splits[0].test, data.test_mask)
