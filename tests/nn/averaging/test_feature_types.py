"""Types of points are a function of their features: equal for equal rows, ordered as rows are."""

import pytest
import torch

from eqflow import rng
from eqflow.geometry import Segments
from eqflow.nn.averaging.features import types_of

CLOUDS = Segments.of_lengths(torch.tensor([20, 0, 1, 39]))


@pytest.mark.parametrize("columns", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_types_are_the_places_of_rows_among_those_of_their_cloud(
    columns: int, dtype: torch.dtype
) -> None:
    source = rng.generator(0, "types", columns)
    drawn = rng.uniform((60, columns), torch.zeros(()), source).mul(2.99).sub(1).round()
    h = drawn.to(dtype)
    found = types_of(h, CLOUDS).tolist()
    for start, end in zip(CLOUDS.ptr[:-1].tolist(), CLOUDS.ptr[1:].tolist(), strict=True):
        own = [tuple(row) for row in h[start:end].tolist()]
        rows = sorted(set(own))
        assert found[start:end] == [rows.index(row) for row in own]


def test_features_that_differ_by_rounding_are_of_one_type() -> None:
    exact = torch.tensor([[1.0, -3.0], [1.0, -3.0], [1.0, 2.0], [0.5, 2.0]], dtype=torch.float64)
    noise = 1e-14 * torch.tensor([[1.0, -2.0], [-1.0, 3.0], [2.0, 1.0], [1.0, 1.0]])
    clouds = Segments(torch.tensor([0, 4]))
    assert types_of(exact + noise, clouds).tolist() == [1, 1, 2, 0]
    assert types_of(exact + 1e8 * noise, clouds).unique().numel() == 4


def test_as_many_types_as_rows_of_many_columns_are_told_apart() -> None:
    h = rng.normal((500, 40), torch.zeros(()), rng.generator(0, "types", "wide")).double()
    order = sorted(range(len(h)), key=lambda row: h[row].tolist())
    assert types_of(h, Segments(torch.tensor([0, 500]))).argsort().tolist() == order


def test_all_alike_is_one_type() -> None:
    assert types_of(torch.ones(60, 3), CLOUDS).tolist() == [0] * 60


@pytest.mark.parametrize("h", [None, torch.zeros(0, 3), torch.zeros(4, 0)])
def test_without_features_there_are_no_types(h: torch.Tensor | None) -> None:
    assert types_of(h, CLOUDS) is None
