"""A run with `train.compile` says what is compiled, and when nothing is."""

import torch

from eqflow.geometry import Clouds
from eqflow.train.compiling import compiling
from eqflow.train.config import ModelConfig


def test_a_step_too_small_to_compile_is_told_from_one_that_is_compiled() -> None:
    clouds = Clouds(torch.randn(130, 3), torch.arange(0, 131, 13))
    assert "nothing is compiled" in compiling(clouds, 1, ModelConfig(width=32))
    assert "up to a minute" in compiling(clouds, 64, ModelConfig(width=32))
