"""Data sets by name: published counts, splits and homophily; mix-ups are noticed."""

from dataclasses import replace

import pytest
import torch
from planetoid_files import write_raw

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import DataError, UsageError
from eqflow.graphs import (
    Graph,
    homophily,
    largest_component,
    load_graph,
    write_graph,
)
from eqflow.graphs.sources import SOURCES

HETEROPHILIC = {
    # nodes, undirected edges, features, classes, edge homophily: the table of data/README.md.
    "texas": (183, 279, 1703, 5, 0.06),
    "cornell": (183, 277, 1703, 5, 0.12),
    "wisconsin": (251, 450, 1703, 5, 0.18),
    "actor": (7600, 26659, 932, 5, 0.22),
    "chameleon_filtered": (890, 8854, 2325, 5, 0.24),
    "squirrel_filtered": (2223, 46998, 2089, 5, 0.21),
}

# The same, and nodes and edges of the largest component (Shchur et al., 2018, table 1).
HOMOPHILIC = {
    "photo": (7650, 119081, 745, 8, 0.83, 7487, 119043),
    "computers": (13752, 245861, 767, 10, 0.78, 13381, 245778),
    "coauthor_cs": (18333, 81894, 6805, 15, 0.81, 18333, 81894),
}


def figures(graph: Graph) -> tuple:
    return (
        graph.nodes,
        graph.edges.count // 2,
        graph.features,
        graph.classes,
        round(homophily(graph), 2),
    )


@pytest.mark.parametrize("name", HETEROPHILIC)
def test_heterophilic_sets_have_the_counts_we_tell_and_ten_splits(shared_data, name):
    graph = load_graph(name, shared_data / "graphs")
    assert figures(graph) == HETEROPHILIC[name]
    assert graph.name == name
    assert graph.edges.is_symmetric
    assert len(graph.splits) == 10
    for split in graph.splits:
        parts = list(split.parts.values())
        assert torch.equal(sum(part.int() for part in parts), torch.ones(graph.nodes).int())
    drawn = {tuple(split.test.nonzero().squeeze(1).tolist()) for split in graph.splits}
    assert len(drawn) == 10


@pytest.mark.parametrize("name", HOMOPHILIC)
def test_the_other_sets_have_the_published_counts(shared_data, name):
    graph = load_graph(name, shared_data / "graphs")
    part, _ = largest_component(graph)
    assert (*figures(graph), part.nodes, part.edges.count // 2) == HOMOPHILIC[name]
    assert graph.splits == ()


def test_photo_is_directed_as_published_where_asked_for(shared_data):
    graph = load_graph("photo", shared_data / "graphs", undirected=False)
    assert not graph.edges.is_symmetric
    assert graph.edges.count == 143_662
    loops = load_graph("photo", shared_data / "graphs", undirected=False, self_loops=True)
    assert loops.edges.count == 143_663


def test_a_file_alone_and_its_folder_are_the_same(shared_data):
    folder = shared_data / "graphs"
    for name, file in (("texas", "het_texas"), ("texas", None), ("file", "het_texas")):
        graph = load_graph(name, folder / f"{file}.npz" if file else folder)
        assert graph.nodes == 183
        assert graph.name == ("texas" if name == "texas" else "het_texas")


def graph_of(nodes: int, same: float) -> Graph:
    """A graph in which about a share `same` of the edges joins nodes of one class."""
    source = rng.generator(0, "made up")
    y = torch.arange(nodes) % 2
    a = torch.randint(0, nodes, (400,), generator=source)
    step = 2 * torch.randint(0, nodes // 2, (400,), generator=source)
    b = (a + step + (torch.rand(400, generator=source) > same)) % (nodes - nodes % 2)
    return Graph(torch.ones(nodes, 2), Edges.from_index(torch.stack([a, b]), nodes), y)


def test_the_other_cornell_is_refused_by_its_homophily(tmp_path):
    write_graph(graph_of(183, 0.3), tmp_path / "cornell.npz")
    with pytest.raises(DataError, match=r"edge homophily of 0\.\d\d, expected 0\.12 .*Texas"):
        load_graph("cornell", tmp_path)
    assert homophily(load_graph("file", tmp_path / "cornell.npz")) > 0.2
    write_graph(graph_of(183, 0.1), tmp_path / "cornell.npz")
    assert load_graph("cornell", tmp_path).name == "cornell"


def test_labels_of_texas_on_the_edges_of_cornell_are_recognised(shared_data, tmp_path):
    texas, cornell = (load_graph(name, shared_data / "graphs") for name in ("texas", "cornell"))
    write_graph(texas.with_edges(cornell.edges), tmp_path / "cornell.npz")
    with pytest.raises(DataError, match=r"expected 0\.12 of the true Cornell"):
        load_graph("cornell", tmp_path)


def test_texas_and_cornell_are_not_taken_for_each_other(shared_data, tmp_path):
    folder = shared_data / "graphs"
    for source, other in (("texas", "cornell"), ("cornell", "texas")):
        with pytest.raises(DataError, match=rf"as {other} has, .*Pass source={other}"):
            load_graph(source, folder / f"het_{other}.npz")
    # The rest of Texas on the edges of Cornell is no Texas either.
    texas, cornell = (load_graph(name, folder) for name in ("texas", "cornell"))
    write_graph(texas.with_edges(cornell.edges), tmp_path / "texas.npz")
    with pytest.raises(DataError, match="as cornell has"):
        load_graph("texas", tmp_path)


def test_a_file_of_another_set_is_noticed(tmp_path):
    write_graph(graph_of(100, 0.5), tmp_path / "texas.npz")
    with pytest.raises(DataError, match=r"found 100 nodes, expected the 183 of texas.*source=file"):
        load_graph("texas", tmp_path)
    with pytest.raises(DataError, match="expected the 19,717 of pubmed"):
        load_graph("pubmed", tmp_path / "texas.npz")
    assert load_graph("file", tmp_path / "texas.npz").nodes == 100


def test_a_set_without_its_repeats_is_not_taken_for_the_first_one(tmp_path):
    write_graph(graph_of(890, 0.5), tmp_path / "het_chameleon_filtered.npz")
    assert load_graph("chameleon_filtered", tmp_path).nodes == 890
    with pytest.raises(
        DataError,
        match=r"none of chameleon.npz.*Download https.*source=chameleon_filtered, another data",
    ):
        load_graph("chameleon", tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_path_the_published_address_is_told(name, tmp_path):
    with pytest.raises(UsageError, match=rf"no path for {name}. Download https://github.com/.*npz"):
        load_graph(name)
    with pytest.raises(DataError, match=r"found none of .*Download https://github.com/.*npz"):
        load_graph(name, tmp_path)


def test_a_converted_planetoid_set_is_taken_from_its_npz(tmp_path):
    write_graph(graph_of(2708, 0.5), tmp_path / "cora.npz")
    for path in (tmp_path, tmp_path / "cora.npz"):
        assert load_graph("cora", path).name == "cora"
    (tmp_path / "raw").mkdir()
    write_raw(tmp_path / "raw", "citeseer")
    with pytest.raises(DataError, match="not opened"):
        load_graph("citeseer", tmp_path)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UsageError, match="found the source 'Cora', expected one of cora"):
        load_graph("Cora")
    for name in ("texas", "cora"):
        with pytest.raises(UsageError, match="published without directions"):
            load_graph(name, tmp_path, undirected=False)
    with pytest.raises(DataError, match=r"found a folder, expected an \.npz"):
        load_graph("file", tmp_path)
    with pytest.raises(UsageError, match="no path for file"):
        load_graph("file")


def test_homophily_does_not_depend_on_the_order_of_the_nodes(shared_data):
    graph = load_graph("wisconsin", shared_data / "graphs")
    order = rng.permutation(graph.nodes, rng.generator(0, "order"))
    place = torch.argsort(order)
    index = torch.stack([place[graph.edges.sender], place[graph.edges.receiver]])
    moved = replace(graph, edges=Edges.from_index(index, graph.nodes), y=graph.y[order], splits=())
    assert homophily(moved) == homophily(graph)
