"""A kernel that gives something else than torch, or nothing, is not believed."""

import pytest
import torch

from eqflow.edges import Edges, kernels
from eqflow.edges.kernels.self_check import failing

CPU = torch.device("cpu")
OPERATIONS = sorted({*kernels.__all__} - {"unbelievable", "unsupported"})


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_kernel_passes_its_check(operation, dtype) -> None:
    assert failing(getattr(kernels, operation), CPU, dtype, 32, "ieee") is None


def test_a_wrong_value_fails_the_check() -> None:
    def edge_dot(p, q, edges):
        return kernels.edge_dot(p, q, edges) * 1.01

    assert "off, allowed" in failing(edge_dot, CPU, torch.float32, 8, "ieee")


def test_a_wrong_derivative_of_a_right_value_fails_the_check() -> None:
    def squared_distance(x, edges):
        value = kernels.squared_distance(x, edges)
        return value.detach() + 1.01 * (value - value.detach())

    assert "off, allowed" in failing(squared_distance, CPU, torch.float32, 3, "ieee")


def test_nan_fails_the_check() -> None:
    def sum_receiver(m, edges):
        return kernels.sum_receiver(m, edges) * torch.nan

    assert "inf off" in failing(sum_receiver, CPU, torch.float32, 3, "ieee")


def test_a_launch_that_raises_fails_the_check() -> None:
    def gather_sender(x, edges):
        raise RuntimeError("no room on the chip")

    assert "no room on the chip" in failing(gather_sender, CPU, torch.float32, 3, "ieee")


def test_the_answer_is_asked_for_with_the_width_of_the_features(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(kernels, "failing", lambda *key: asked.append(key[3]))
    edges = Edges.complete(torch.tensor([0, 3]))
    wide, heads = torch.zeros(3, 2, 33), torch.zeros(6, 2)
    kernels.unbelievable("squared_distance", torch.zeros(3, 3), edges)
    kernels.unbelievable("weighted_sum", heads, wide, edges)
    kernels.unbelievable("segment_softmax", torch.zeros(6), edges)
    kernels.unbelievable("attention_diffusion", wide, wide, torch.zeros(3, 900), edges, "softmax")
    assert asked == [4, 64, 1, 256]


def test_inference_mode_and_autocast_do_not_fail_a_good_kernel() -> None:
    def weighted_sum(w, x, edges):
        return kernels.weighted_sum(w, x, edges)

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert failing(weighted_sum, CPU, torch.float32, 8, "ieee") is None
