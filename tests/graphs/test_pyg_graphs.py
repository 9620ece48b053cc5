"""Graphs from PyG's `Data`, dense and sparse, and what is missing in one."""

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

from eqflow.errors import DataError, EmptyData
from eqflow.graphs import from_pyg

N = 4


def data(**change) -> Data:
    train, validation, test = torch.eye(N, dtype=torch.bool)[:3]
    fields = {
        "x": torch.arange(N * 30.0).reshape(N, 30),
        "edge_index": torch.tensor([[0, 1, 1, 2], [1, 2, 2, 2]]),
        "y": torch.tensor([0, 1, 1, 0]),
        "train_mask": train,
        "val_mask": validation,
        "test_mask": test,
    }
    return Data(**{key: value for key, value in (fields | change).items() if value is not None})


def pairs(edges) -> list[tuple[int, int]]:
    return sorted(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


def test_nodes_edges_and_masks_are_taken_over():
    given = data(encoding=torch.ones(N, 2))
    graph = from_pyg(given, name="four")
    assert torch.equal(graph.x, given.x)
    assert torch.equal(graph.y, given.y)
    assert torch.equal(graph.encoding, given.encoding)
    assert pairs(graph.edges) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert graph.name == "four"
    (split,) = graph.splits
    assert torch.equal(split.train, given.train_mask)
    assert torch.equal(split.validation, given.val_mask)
    assert torch.equal(split.test, given.test_mask)
    listed = from_pyg(given, undirected=False, self_loops=True)
    assert pairs(listed.edges) == [(0, 1), (1, 2), (1, 2), (2, 2)]


def test_masks_of_several_splits_are_several_splits():
    one = torch.eye(N, dtype=torch.bool)
    given = data(train_mask=one[:2].T, val_mask=one[[1, 0]].T, test_mask=one[3])
    graph = from_pyg(given)
    assert [split.train.nonzero().item() for split in graph.splits] == [0, 1]
    assert [split.validation.nonzero().item() for split in graph.splits] == [1, 0]
    assert [split.test.nonzero().item() for split in graph.splits] == [3, 3]


def test_without_masks_there_are_no_splits():
    graph = from_pyg(data(train_mask=None, val_mask=None, test_mask=None))
    assert graph.splits == ()


def test_sparse_features_are_the_same_numbers():
    x = torch.zeros(N, 30)
    x[1, 3], x[2, 29] = 2.5, 1.0
    for sparse in (
        x.to_sparse(),
        torch.sparse_coo_tensor(
            [[1, 2, 1], [3, 29, 3]], [2.0, 1.0, 0.5], x.shape, check_invariants=True
        ),
    ):
        graph = from_pyg(data(x=sparse))
        assert graph.x.layout is torch.sparse_csr
        assert torch.equal(graph.x.to_dense(), x)


def test_features_in_bfloat16_become_float32():
    x = torch.arange(N * 2.0).reshape(N, 2)
    assert torch.equal(from_pyg(data(x=x.bfloat16())).x, x)


def test_a_batch_keeps_its_graphs_apart():
    graph = from_pyg(Batch.from_data_list([data(), data()]))
    assert graph.nodes == 2 * N
    assert graph.edges.clouds.ptr.tolist() == [0, N, 2 * N]


def test_gradients_are_not_kept():
    assert not from_pyg(data(x=torch.ones(N, 3, requires_grad=True))).x.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "expected features as one of"),
        ({"y": None}, "expected labels under"),
        ({"edge_index": None}, "expected edges under"),
        ({"y": torch.ones(N)}, r"found y \(4,\) of float32"),
        ({"edge_index": torch.tensor([[0], [4]])}, "found edge_index from 0 to 4, expected 0 to 3"),
        ({"x": torch.full((N, 2), torch.nan)}, "found nan in x of node 0"),
        ({"x": [1, 2, 3, 4]}, "found x of type list"),
        ({"val_mask": None}, "val has 0"),
    ],
)
def test_what_is_missing_or_malformed_is_named(change, words):
    with pytest.raises(DataError, match=rf"^from_pyg\(Data\(.*{words}"):
        from_pyg(data(**change))


def test_an_empty_part_is_refused():
    with pytest.raises(EmptyData, match=r"from_pyg.*'test': 0"):
        from_pyg(data(test_mask=torch.zeros(N, dtype=torch.bool)))


def test_a_graph_of_several_kinds_of_nodes_is_refused():
    several = HeteroData()
    several["paper"].x = torch.ones(3, 2)
    with pytest.raises(DataError, match="from_pyg"):
        from_pyg(several)
