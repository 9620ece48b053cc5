import pytest
import torch
from torch import Tensor

from eqflow.geometry.representations import representation
from eqflow.geometry.rotations import random_orthogonal
from eqflow.nn.averaging.free_axes import projectors

CASES = [
    (3, output)
    for output in ("vector", "tensor(2)", "tensor(3)", "1x0o", "1x1e", "1x2e+1x2o", "2x0e+1x3o")
]
CASES += [(d, output) for d in (1, 2, 4) for output in ("vector", "tensor(2)")]
proper_or_not = pytest.mark.parametrize("proper", [False, True], ids=["O", "SO"])


def free_turns(rank: int, dimension: int, proper: bool, count: int) -> Tensor:
    """Random elements of the group that leaves the first `rank` axes where they are."""
    like = torch.zeros((), dtype=torch.float64)
    turned = torch.eye(dimension, dtype=torch.float64).repeat(count, 1, 1)
    if rank <= dimension - 2:
        source = torch.Generator().manual_seed(rank)
        turned[:, rank:, rank:] = random_orthogonal(count, dimension - rank, like, source, proper)
    return turned


@proper_or_not
@pytest.mark.parametrize(("dimension", "output"), CASES)
def test_projections_are_onto_what_free_axes_leave_alone(dimension, output, proper) -> None:
    kind = representation(output, dimension)
    table = projectors(output, dimension, proper)
    assert table.shape == (dimension + 1, kind.columns, kind.columns)
    for rank, found in enumerate(table):
        torch.testing.assert_close(found @ found, found, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.mT, found, rtol=0, atol=1e-14)
        moved = kind.matrices(free_turns(rank, dimension, proper, 50))
        expected = found.expand_as(moved)
        torch.testing.assert_close(moved @ found, expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(found @ moved, expected, rtol=0, atol=1e-11)
        if rank >= dimension - 1:
            torch.testing.assert_close(found, torch.eye(kind.columns).double(), rtol=0, atol=1e-14)


@proper_or_not
@pytest.mark.parametrize(("dimension", "output"), CASES)
def test_projections_are_averages_over_free_axes(dimension, output, proper) -> None:
    # Traces count the dimensions that are left: the mean character of the free group.
    kind, count = representation(output, dimension), 4000
    for rank, found in enumerate(projectors(output, dimension, proper)):
        characters = (
            kind.matrices(free_turns(rank, dimension, proper, count))
            .diagonal(dim1=1, dim2=2)
            .sum(1)
        )
        error = characters.std() / count**0.5
        assert abs(float(characters.mean() - found.trace())) < 5 * float(error) + 1e-9


def test_what_is_left_of_vectors_and_tensors_is_what_geometry_says() -> None:
    unit = torch.eye(3, dtype=torch.float64)
    line = torch.diag(unit[0])
    for proper in (False, True):
        vector = projectors("vector", 3, proper)
        torch.testing.assert_close(vector[0], torch.zeros(3, 3).double(), rtol=0, atol=1e-14)
        torch.testing.assert_close(vector[1], line, rtol=0, atol=1e-14)
        tensor = projectors("tensor(2)", 3, proper)
        # Of a point a multiple of the metric; of a line what is along it and across it, and, where
        # reflections are not there to forbid it, the turn about it.
        assert [round(float(found.trace())) for found in tensor[:2]] == [1, 3 if proper else 2]
        metric = unit.flatten() / 3**0.5
        torch.testing.assert_close(tensor[0], torch.outer(metric, metric), rtol=0, atol=1e-12)
    assert float(projectors("1x0o", 3, False)[0].abs().max()) < 1e-14
    assert float(projectors("1x0o", 3, True)[0]) == pytest.approx(1)
