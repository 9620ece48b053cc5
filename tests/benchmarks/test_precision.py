"""The emulated roundings are those they are said to be, and reach the results."""

import pytest
import torch
from gpu_checks import derivatives
from gpu_problems import by_torch, by_triton, complete, message_pass
from precision import PRECISIONS, cut, errors_of, nearest, operands, product, split
from torch.nn.functional import linear
from torch.testing import assert_close

from eqflow.edges.reference import edge_mlp

ULP = 2.0**-10  # of 10 explicit bits, at 1


def of(value: float) -> torch.Tensor:
    return torch.tensor([value, -value])


@pytest.mark.parametrize("name", PRECISIONS)
def test_numbers_of_seven_bits_survive_every_rounding(name: str) -> None:
    x = torch.cat([of((1 + k / 128) * 2.0**e) for k in range(128) for e in (-20, 0, 15)] + [of(0)])
    assert torch.equal(torch.stack(PRECISIONS[name](x)).sum(0), x)


def test_cutting_goes_towards_zero() -> None:
    assert torch.equal(cut(of(1 + ULP - 2.0**-23)), of(1))
    assert torch.equal(cut(of(1 + ULP)), of(1 + ULP))


def test_a_tie_goes_away_from_zero_in_tf32_and_to_even_in_bf16() -> None:
    assert torch.equal(nearest(of(1 + ULP / 2)), of(1 + ULP))
    assert torch.equal(nearest(of(1 + ULP / 2 - 2.0**-23)), of(1))
    assert torch.equal(nearest(of(1 + 3 * ULP / 2)), of(1 + 2 * ULP))
    assert torch.equal(nearest(of(2 - 2.0**-23)), of(2))
    (down,), (up,) = (PRECISIONS["bf16"](of(1 + k * 2.0**-8)) for k in (1, 3))
    assert torch.equal(down, of(1))
    assert torch.equal(up, of(1 + 2.0**-6))


def test_two_parts_have_the_digits_of_float32_but_two() -> None:
    x = torch.randn(10_000)
    first, rest = split(x)
    for part in (first, rest):
        assert torch.equal(cut(part), part)
    assert ((first + rest - x).abs() <= 2.0**-21 * x.abs()).all()


def test_a_product_in_parts_leaves_out_only_that_of_both_rests() -> None:
    a, b = torch.tensor([[1 + ULP / 4]]), torch.tensor([[1 + ULP / 4]])
    assert product(a, b, split).item() == 1 + ULP / 2
    assert product(a, b, PRECISIONS["tf32, cut"]).item() == 1


def test_wide_layers_alone_are_rounded_and_only_inside_the_block() -> None:
    m, wide, narrow = torch.randn(5, 8), torch.randn(8, 8), torch.randn(1, 8)
    with operands(PRECISIONS["bf16"]):
        assert torch.equal(edge_mlp.linear(m, narrow), linear(m, narrow))
        expected = linear(m.bfloat16().float(), wide.bfloat16().float())
        assert_close(edge_mlp.linear(m, wide), expected)
    assert edge_mlp.linear is linear


def test_derivatives_are_products_of_rounded_operands() -> None:
    m, weight = torch.randn(5, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    bias, g = torch.randn(8, requires_grad=True), torch.randn(5, 8)
    inputs = (m, weight, bias)
    with operands(PRECISIONS["tf32"]):
        of_m, of_weight, of_bias = torch.autograd.grad(edge_mlp.linear(*inputs), inputs, g)
    assert_close(of_m, nearest(g) @ nearest(weight))
    assert_close(of_weight, nearest(g).t() @ nearest(m))
    assert_close(of_bias, g.sum(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
@pytest.mark.parametrize("width", [32, 64])
def test_the_interpreted_kernels_round_to_tf32_as_is_emulated(width: int) -> None:
    pytest.importorskip("triton")
    made = message_pass(complete((2, 3, 4, 5, 13), torch.device("cpu")), width, torch.float32)
    tensors = made.tensors()
    with by_torch():
        exact = derivatives(made, [value.double() for value in tensors], orders=1)
        with operands(PRECISIONS["tf32"]):
            emulated = derivatives(made, tensors, orders=1)
    with by_triton("tf32"):
        found = derivatives(made, tensors, orders=1)
    at_receivers = 1  # their gradient is a sum over edges as well, whose terms only kernels round
    for what, values in exact.items():
        for at, value in enumerate(values):
            error = (emulated[what][at] - value).norm()
            share = 0.6 if (what, at) == ("gradient", at_receivers) else 0.1
            assert (found[what][at] - emulated[what][at]).norm() < share * error, (what, at)


def test_fewer_bits_are_a_larger_error_of_every_result() -> None:
    found = errors_of(16, molecules=2)
    for what in ("velocity", "derivative", "weight gradient"):
        error = {name: results[what] for name, results in found.items()}
        assert error["ieee"] < 1e-5
        assert error["tf32x3"] < 1e-5
        assert 1e-5 < error["tf32"] < error["bf16"] < 1
        assert error["tf32"] < error["tf32, cut"]
