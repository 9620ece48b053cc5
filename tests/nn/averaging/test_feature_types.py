"""Types of points are a function of their features: equal for equal rows, ordered as rows are."""

import pytest
import torch

from eqflow import rng
from eqflow.nn.averaging.features import types_of


@pytest.mark.parametrize("columns", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_types_are_the_places_of_rows_in_their_order(columns: int, dtype: torch.dtype) -> None:
    source = rng.generator(0, "types", columns)
    drawn = rng.uniform((60, columns), torch.zeros(()), source).mul(2.99).sub(1).round()
    h = drawn.to(dtype)
    rows = sorted({tuple(row) for row in h.tolist()})
    assert types_of(h).tolist() == [rows.index(tuple(row)) for row in h.tolist()]


def test_as_many_types_as_rows_of_many_columns_are_told_apart() -> None:
    h = rng.normal((500, 40), torch.zeros(()), rng.generator(0, "types", "wide"))
    order = sorted(range(len(h)), key=lambda row: h[row].tolist())
    assert types_of(h).argsort().tolist() == order


@pytest.mark.parametrize("h", [None, torch.zeros(0, 3), torch.zeros(4, 0)])
def test_without_features_there_are_no_types(h: torch.Tensor | None) -> None:
    assert types_of(h) is None
