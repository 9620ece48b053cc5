"""Products of matrices: whichever library makes them, they are the ones torch makes."""

import pytest
import torch
from torch.nn.functional import linear

from eqflow import rng
from eqflow.edges import products
from eqflow.edges.products import outer_product, product

SIZES = [(4096, 64, 64), (2048, 32, 48), (1999, 128, 64), (7, 64, 64), (4096, 3, 64), (0, 64, 64)]


def draw(*shape, dtype=torch.float32):
    return rng.normal(shape, torch.zeros((), dtype=dtype), rng.generator(0, "drawn", *shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inner", "outer"), SIZES)
@torch.no_grad()
def test_products_equal_those_of_torch(rows, inner, outer, dtype):
    x, W = draw(rows, inner, dtype=dtype), draw(outer, inner, dtype=dtype)
    b, g = draw(outer, dtype=dtype), draw(rows, outer, dtype=dtype)
    close = {"rtol": 1e-5, "atol": 1e-5 * max(rows, 1) ** 0.5} if dtype == torch.float32 else {}
    torch.testing.assert_close(product(x, W, b), linear(x, W, b), **close)
    torch.testing.assert_close(product(g, W.t()), g @ W, **close)
    torch.testing.assert_close(outer_product(g, x), g.t() @ x, **close)


@pytest.mark.parametrize("bias", [draw(64, 2)[:, 0], draw(1).expand(64)], ids=["column", "one"])
@torch.no_grad()
def test_weights_and_biases_may_have_gaps(bias):
    x, W = draw(4096, 64), draw(64, 128)[:, 64:]
    torch.testing.assert_close(product(x, W, bias), linear(x, W, bias), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_leading_axes_are_kept():
    x, W = draw(4, 512, 64), draw(64, 64)
    torch.testing.assert_close(product(x, W), x @ W.t(), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not products._HAS_ONEDNN, reason="this processor has no use for oneDNN")
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@torch.no_grad()
def test_only_large_float32_products_outside_autograd_go_to_onednn():
    large, small, W = draw(4096, 64), draw(16, 64), draw(64, 64)
    assert products._is_for_onednn(large, W, products.COLUMNS)
    assert not products._is_for_onednn(small, W, products.COLUMNS)
    assert not products._is_for_onednn(large.double(), W.double(), products.COLUMNS)
    with torch.enable_grad():
        assert not products._is_for_onednn(large, W, products.COLUMNS)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products._is_for_onednn(large, W, products.COLUMNS)


@torch.no_grad()
def test_a_product_repeated_gives_the_same_bits():
    x, W = draw(4096, 64), draw(64, 64)
    assert torch.equal(product(x, W), product(x, W))
    assert torch.equal(outer_product(x, x), outer_product(x, x))


def test_small_products_can_be_differentiated():
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    W = draw(4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(product, (x, W))
