"""Operands of "tf32" are rounded to the nearest, on the GPU or in Triton's interpreter."""

import pytest
import torch
import triton
import triton.language as tl
from passes import DEVICE, GRAPHS_TO_PASS, directions, inputs, network
from torch import Tensor

from eqflow.edges import MessageInputs, egcl_messages, egcl_messages_dual, use_backend
from eqflow.edges.kernels import message_arguments, messages_backward, operands
from eqflow.edges.kernels.device import INTERPRETED
from eqflow.edges.kernels.operands import BLOCK, to_tf32

UNIT = 2.0**-10  # of the last of 10 explicit bits, at 1
LARGEST = torch.finfo(torch.float32).max

# What operands that are off by half a unit at most come to in one pass, relatively: emulated in
# `benchmarks/precision.py`.
LEAST, MOST = 1e-4, 1e-3


def of(*values: float) -> Tensor:
    return torch.tensor([*values, *(-value for value in values)], device=DEVICE)


# Numbers.


def test_numbers_of_ten_bits_stay() -> None:
    x = of(0.0, *((1 + k * UNIT) * 2.0**e for k in range(1024) for e in (-100, -1, 0, 90)))
    assert torch.equal(to_tf32(x), x)


@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 1])
def test_every_other_goes_to_the_nearest(count: int) -> None:
    x = torch.randn(count).to(DEVICE) * 10.0 ** torch.randint(-20, 20, (count,)).to(DEVICE)
    significand, exponent = torch.frexp(x.double())
    assert torch.equal(
        to_tf32(x).double(), torch.ldexp((significand * 2**11).round() / 2**11, exponent)
    )


def test_a_tie_goes_away_from_zero() -> None:
    x = of(1 + UNIT / 2, 1 + 3 * UNIT / 2, 2 - UNIT / 2, 1 + UNIT / 2 - 2.0**-23)
    assert torch.equal(to_tf32(x), of(1 + UNIT, 1 + 2 * UNIT, 2, 1))


def test_what_is_not_finite_stays_so_and_nothing_else_becomes_so() -> None:
    bits = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -0x3FFFFF], dtype=torch.int32)
    assert to_tf32(bits.view(torch.float32).to(DEVICE)).isnan().all()
    assert torch.equal(to_tf32(of(torch.inf)), of(torch.inf))
    assert to_tf32(of(LARGEST, LARGEST * (1 - UNIT / 8))).isfinite().all()


# Message passes.


def results(precision: str, width: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Sums, tangents and gradients of one pass."""
    torch.manual_seed(0)
    edges = GRAPHS_TO_PASS["ragged"].edges(DEVICE)
    net, primal = network(width, 1, torch.float64), inputs(edges, width, dtype=torch.float64)
    moved = directions(primal, 1)
    net = net.with_tensors(tuple(value.to(dtype) for value in net.tensors()))
    primal, moved = (type(part)(*[value.to(dtype) for value in part]) for part in (primal, moved))
    leaves = [value.requires_grad_() for value in (*primal, *net.tensors())]
    x, receiver, sender, scalars, envelope = leaves[:5]
    net = net.with_tensors(tuple(leaves[5:]))
    backend = "torch" if dtype == torch.float64 else "triton"
    with use_backend(backend, precision=precision, strict=True):
        sums = egcl_messages(x, receiver, sender, scalars, net, edges, envelope)
        along = [torch.linspace(-1, 1, v.numel()).to(v).view_as(v) for v in sums]
        gradients = torch.autograd.grad(sums, leaves, along)
        with torch.no_grad():
            dual = egcl_messages_dual(MessageInputs(*leaves[:5]), moved, net, edges)
    return {
        "shift": sums[0].detach(),
        "message": sums[1].detach(),
        "shift tangent": dual.shift_tangent,
        "message tangent": dual.message_tangent,
        "gradient of x": gradients[0],
        "gradient of receivers": gradients[1],
        "gradient of senders": gradients[2],
        "gradient of W_m": gradients[6],
        "gradient of W_x": gradients[8],
    }


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: float((found[name].double() - value).norm() / value.norm())
        for name, value in exact.items()
    }


@triton.jit
def cut_tf32(values):
    """As a tensor core takes what is not rounded."""
    return (values.to(tl.int32, bitcast=True) & (-1 << 13)).to(tl.float32, bitcast=True)


def cut_weight(weight: Tensor) -> Tensor:
    return (weight.view(torch.int32) & (-1 << 13)).view(torch.float32)


@pytest.mark.parametrize("width", [32, 64, 128])
def test_values_tangents_and_gradients_have_the_error_of_half_a_unit(width: int) -> None:
    exact = results("ieee", width, torch.float64)
    for name, error in errors(results("tf32", width), exact).items():
        assert LEAST < error < MOST, name


@pytest.mark.skipif(not INTERPRETED, reason="compiled kernels cannot be told to cut")
def test_cut_operands_would_be_further_off(monkeypatch) -> None:
    exact = results("ieee", 64, torch.float64)
    rounded = errors(results("tf32", 64), exact)
    monkeypatch.setattr(operands, "nearest_tf32", cut_tf32)
    monkeypatch.setattr(message_arguments, "to_tf32", cut_weight)
    for name, error in errors(results("tf32", 64), exact).items():
        assert error > 1.5 * rounded[name], name


def test_no_other_precision_is_rounded_to_ten_bits() -> None:
    exact = results("ieee", 32, torch.float64)
    for precision in ("ieee", "tf32x3"):
        assert max(errors(results(precision, 32), exact).values()) < 5e-6


def test_operands_that_are_stored_are_those_that_are_not(monkeypatch) -> None:
    at_once = results("tf32", 32)
    monkeypatch.setattr(messages_backward, "OPERANDS_FROM", 32)
    stored = results("tf32", 32)
    for name, value in at_once.items():
        assert float((stored[name] - value).norm() / value.norm()) < 1e-6, name
