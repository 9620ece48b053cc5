"""A kernel that gives something else than torch, or nothing, is not believed."""

import pytest
import torch

from eqflow.edges import Edges, kernels, use_backend
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


def test_the_answer_is_asked_for_with_the_width_of_the_call() -> None:
    edges = Edges.complete(torch.tensor([0, 3]))
    with use_backend("triton", precision="ieee"):
        assert kernels.unbelievable("squared_distance", torch.zeros(3, 3), edges) is None
