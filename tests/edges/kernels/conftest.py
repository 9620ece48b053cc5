"""Triton's interpreter takes milliseconds a kernel: most derivatives are left to the slow tests."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:  # there is none for this system
    collect_ignore_glob = ["test_*.py"]

DERIVATIVES_ON = ("repeated and loops", "without_edges")
SECOND_DERIVATIVES_OF = (
    "gather, sender",
    "segment_sum, sender",
    "edge_dot",
    "weighted_sum, heads share x",
    "weighted_difference, heads",
    "difference_dot, heads share x",
    "squared_distance",
    "segment_softmax, heads",
    "normalised, squareplus, sender",
    "edge_linear",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if getattr(getattr(item, "cls", None), "__name__", "") == "TestTritonBackend":
            name = item.name.rstrip("]")
            is_derivative = "derivative" in name or "jacobian" in name
            is_kept = any(words in name for words in DERIVATIVES_ON)
            if "second" in name or "jacobian" in name:
                is_kept &= any(name.endswith(f"-{which}") for which in SECOND_DERIVATIVES_OF)
            if is_derivative and "[" in item.name and not is_kept:
                item.add_marker(pytest.mark.slow)
