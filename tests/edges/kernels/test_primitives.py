import os
import subprocess
import sys

import pytest
import torch
from conformance import BackendConformance, every_primitive
from loops import GRAPHS, PRIMITIVES, Primitive, relative_error
from tolerances import TOLERANCE

from eqflow.edges import (
    Edges,
    attention_diffusion,
    edge_dot,
    edge_linear,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    use_backend,
    weighted_difference,
    weighted_sum,
)
from eqflow.edges.kernels.schedule import schedule_of
from eqflow.errors import UsageError

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


class TestTritonBackend(BackendConformance):
    """The same laws as for the torch backend; without a GPU, in Triton's interpreter."""

    backend = "triton"
    device = DEVICE
    large_graph = (20_000, 1_000_000) if ON_GPU else (500, 10_000)
    repeated_graph = (500, 40_000) if ON_GPU else (50, 1_000)
    gradcheck_batches = False
    gradcheck_all_entries = ON_GPU


# What the interpreter does not reach by small graphs, or torch does not promise.


def hub(leaves: int) -> Edges:
    """Every leaf to node 0 and back: one row that is split, at either end."""
    out = torch.stack([torch.arange(1, leaves + 1), torch.zeros(leaves, dtype=torch.int64)])
    return Edges.from_index(torch.cat([out, out.flip(0)], 1).to(DEVICE), leaves + 1)


@every_primitive
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_node_with_many_neighbours_is_shared_out_and_added_up(
    primitive: Primitive, dtype: torch.dtype
) -> None:
    edges = hub(300)
    assert schedule_of(edges, "receiver").split is not None
    inputs = primitive.inputs(edges, dtype=dtype)
    with use_backend("torch"):
        expected = primitive.run(*[value.double() for value in inputs], edges)
    with use_backend("triton", strict=True):
        found = primitive.run(*inputs, edges)
    assert relative_error(found, expected) < TOLERANCE[dtype]


# All but `edge_linear`, which adds its three parts in the type they are in.
SUMS = {name: each for name, each in PRIMITIVES.items() if each.run is not edge_linear}


@pytest.mark.parametrize("primitive", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_values_are_added_up_in_float32(primitive: Primitive, dtype: torch.dtype) -> None:
    edges = hub(300)
    inputs = primitive.inputs(edges, dtype=dtype)
    with use_backend("torch"):
        expected = primitive.run(*[value.double() for value in inputs], edges)
    with use_backend("triton", strict=True):
        found = primitive.run(*inputs, edges)
    assert found.dtype == dtype
    # One rounding of the result, two where the interpreter cuts bfloat16 off.
    assert relative_error(found, expected) < 1.01 * torch.finfo(dtype).eps


@pytest.mark.parametrize("width", [1, 5, 64, 300])
def test_any_number_of_channels_is_taken(width: int) -> None:
    edges = GRAPHS["ragged"].edges(DEVICE)
    x = torch.randn(edges.nodes, width, dtype=torch.float64, device=DEVICE)
    w = torch.randn(edges.count, width, dtype=torch.float64, device=DEVICE)
    calls = [
        lambda: gather(x, edges),
        lambda: segment_sum(w, edges, "sender"),
        lambda: segment_softmax(w, edges),
        lambda: edge_dot(x, x, edges),
        lambda: weighted_difference(w[:, 0], x, edges),
        lambda: squared_distance(x, edges),
    ]
    for call in calls:
        with use_backend("torch"):
            expected = call()
        with use_backend("triton", strict=True):
            assert relative_error(call(), expected) < 1e-13


def test_strided_inputs_are_read_as_they_are() -> None:
    edges = GRAPHS["ragged"].edges(DEVICE)
    x = torch.randn(3, edges.nodes, dtype=torch.float64, device=DEVICE).t()
    w = torch.randn(edges.count, 2, dtype=torch.float64, device=DEVICE)[:, 1]
    with use_backend("triton", strict=True):
        found = weighted_difference(w, x, edges)
        assert torch.equal(found, weighted_difference(w.clone(), x.contiguous(), edges))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x, e: gather(x.long(), e), "no kernel for int64"),
        (lambda x, e: squared_distance(x.to(torch.complex64), e), "no kernel for complex64"),
        (lambda x, e: edge_dot(x, x.double(), e), r"several types \(float32, float64\)"),
        (
            lambda x, e: weighted_sum(x.new_zeros(e.count, 2), x.reshape(-1, 1, 1, 3), e),
            "have heads, and values .* more axes",
        ),
        (
            lambda x, e: attention_diffusion(x.repeat(1, 100), x.repeat(1, 100), x, e),
            "300 channels, of at most 256",
        ),
    ],
)
def test_what_there_is_no_kernel_for_says_so(call, reason: str) -> None:
    edges = GRAPHS["ragged"].edges(DEVICE)
    x = torch.randn(edges.nodes, 3, device=DEVICE)
    with (
        use_backend("triton", strict=True),
        pytest.raises(UsageError, match=reason),
    ):
        call(x, edges)


def test_a_program_without_interpreter_says_that_kernels_run_on_a_gpu() -> None:
    code = """
import torch
from eqflow.edges import Edges, squared_distance, use_backend
with use_backend("triton", strict=True):
    squared_distance(torch.zeros(2, 3), Edges.complete(torch.tensor([0, 2])))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "the tensors are on cpu, and kernels run on a GPU" in ran.stderr
