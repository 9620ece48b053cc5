"""Clouds to PyTorch Geometric and back."""

import pytest
import torch

from eqflow.errors import DataError
from eqflow.geometry import Clouds

RAGGED = Clouds(torch.randn(5, 3), torch.tensor([0, 2, 5]), torch.tensor([6, 8, 1, 0, 17]))


@pytest.mark.parametrize("elements", [True, False])
def test_going_to_pyg_and_back_changes_nothing(elements):
    clouds = RAGGED if elements else Clouds(RAGGED.x[:, :2], RAGGED.ptr)
    back = Clouds.from_pyg(clouds.to_pyg())
    assert torch.equal(back.x, clouds.x)
    assert torch.equal(back.ptr, clouds.ptr)
    assert (back.numbers is None) == (not elements)
    if elements:
        assert torch.equal(back.numbers, clouds.numbers)


def test_formal_charges_go_to_pyg_and_back():
    clouds = Clouds(RAGGED.x, RAGGED.ptr, RAGGED.numbers, charges=torch.tensor([1, -1, 0, 0, 2]))
    batch = clouds.to_pyg()
    assert torch.equal(Clouds.from_pyg(batch).charges, clouds.charges)
    assert batch[1].formal_charges.tolist() == [0, 0, 2]
    assert Clouds.from_pyg(RAGGED.to_pyg()).charges is None


def test_the_batch_is_the_one_pyg_makes_itself():
    from torch_geometric.data import Batch, Data

    ours = RAGGED.to_pyg()
    theirs = Batch.from_data_list([Data(pos=cloud.x, z=cloud.numbers) for cloud in RAGGED])
    assert ours.num_graphs == theirs.num_graphs == 2
    assert ours.num_nodes == theirs.num_nodes
    for key in ("pos", "z", "batch", "ptr"):
        assert torch.equal(ours[key], theirs[key])
    for mine, yours in zip(ours.to_data_list(), theirs.to_data_list(), strict=True):
        assert torch.equal(mine.pos, yours.pos)
        assert torch.equal(mine.z, yours.z)
    again = Batch.from_data_list(ours.to_data_list())
    assert torch.equal(again.pos, ours.pos)


def test_one_data_and_a_batch_vector_without_ptr_are_understood():
    from torch_geometric.data import Data

    assert Clouds.from_pyg(Data(pos=RAGGED.x)).ptr.tolist() == [0, 5]
    batch = Data(pos=RAGGED.x, batch=torch.tensor([0, 0, 1, 1, 1]))
    assert Clouds.from_pyg(batch).ptr.tolist() == [0, 2, 5]


def test_points_that_are_missing_or_mixed_are_refused():
    from torch_geometric.data import Data

    with pytest.raises(DataError, match="pos"):
        Clouds.from_pyg(Data(x=RAGGED.x))
    with pytest.raises(DataError, match="cloud by cloud"):
        Clouds.from_pyg(Data(pos=RAGGED.x, batch=torch.tensor([0, 1, 0, 1, 1])))
