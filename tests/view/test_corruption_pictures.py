"""The picture of corruptions is a whole PNG, the same when drawn again, and not of nothing."""

import math

import pytest
import torch

from eqflow import rng
from eqflow.errors import EmptyData
from eqflow.view.corruptions import corruptions


def drawn(scale: float) -> torch.Tensor:
    return scale * torch.randn(50, generator=rng.generator(0, "picture"), dtype=torch.float64)


def test_it_is_a_picture_and_the_same_again(tmp_path) -> None:
    values = {"mirrored": drawn(1e-3), "noise": drawn(30) - 100, "none": torch.full((3,), math.nan)}
    notes = {"noise": "AUROC 0.93"}
    first = corruptions(values, tmp_path / "a.png", notes=notes).read_bytes()
    assert first == corruptions(values, tmp_path / "b.png", notes=notes).read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first != corruptions(values, tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("values", [{}, {"noise": torch.tensor([math.nan, -math.inf])}])
def test_it_is_not_drawn_of_nothing(values, tmp_path) -> None:
    with pytest.raises(EmptyData, match="no finite differences"):
        corruptions(values, tmp_path / "a.png")
