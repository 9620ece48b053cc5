"""Spherical tensors: harmonics, products and layers against e3nn's own."""

import pytest
import torch
from e3nn import o3
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.geometry.representations import representation
from eqflow.geometry.rotations import random_orthogonal
from eqflow.nn.irreps import (
    IrrepsConvolution,
    block,
    natural_paths,
    solid_harmonics,
    tensor_product,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def turn() -> Tensor:
    like = torch.zeros((), dtype=torch.float64)
    return random_orthogonal(1, 3, like, rng.generator(0, "irreps"), proper=True)


def irreps(lmax: int, width: int = 1) -> str:
    return "+".join(f"{width}x{order}{'eo'[order % 2]}" for order in range(lmax + 1))


def flat(h: Tensor) -> Tensor:
    """(N, (lmax + 1)², U) in e3nn's order: channel after channel of one irrep after another."""
    orders = range(round(h.shape[1] ** 0.5))
    return torch.cat([h[:, block(order)].transpose(1, 2).flatten(1) for order in orders], 1)


@pytest.mark.parametrize("lmax", range(7))
def test_solid_harmonics_are_those_of_e3nn(lmax: int) -> None:
    x = normal(20, 3)
    expected = o3.spherical_harmonics(
        list(range(lmax + 1)), x, normalize=False, normalization="component"
    )
    torch.testing.assert_close(solid_harmonics(x, lmax), expected, rtol=1e-11, atol=1e-11)


def test_solid_harmonics_are_polynomials_with_derivatives_at_the_origin() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(solid_harmonics(x, 3)[0].detach(), torch.eye(16, dtype=x.dtype)[0])
    assert torch.autograd.gradcheck(lambda x: solid_harmonics(x, 3), x)
    assert torch.autograd.gradgradcheck(lambda x: solid_harmonics(x, 3), x)


def test_paths_are_all_products_that_keep_natural_parity() -> None:
    assert [len(natural_paths(lmax, lmax, lmax)) for lmax in range(4)] == [1, 4, 11, 23]
    every = o3.FullTensorProduct(irreps(3), irreps(3))
    kept = [str(ir) for _, ir in every.irreps_out if ir.l <= 3 and ir.p == (-1) ** ir.l]
    assert len(kept) == 23


@pytest.mark.parametrize("orders", [(0, 1, 1), (1, 1, 1), (2, 2, 2), (3, 2, 1), (0, 3, 3)], ids=str)
def test_the_product_is_that_of_e3nn(orders: tuple[int, int, int]) -> None:
    width, paths = 4, natural_paths(*orders)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn rounds its coefficients to it
    try:
        theirs = o3.TensorProduct(
            irreps(orders[0], width),
            irreps(orders[1]),
            irreps(orders[2], width),
            [(*path, "uvu", True) for path in paths],
            shared_weights=False,
        )
    finally:
        torch.set_default_dtype(before)
    weight, y = normal(6, len(paths), width), normal(6, (orders[1] + 1) ** 2)
    senders = normal(6, (orders[0] + 1) ** 2, width)
    expected = theirs(flat(senders), y, weight.flatten(1))
    found = flat(tensor_product(weight, senders, y, paths))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_coefficients_are_those_of_the_type_that_is_computed_in() -> None:
    """A model made in single precision is as equivariant in double as one made there."""
    paths = natural_paths(2, 2, 2)
    weight, senders, y = normal(3, 11, 2), normal(3, 9, 2), normal(3, 9)
    single = tensor_product(weight.float(), senders.float(), y.float(), paths)
    double = tensor_product(weight, senders, y, paths)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
    rotation = turn()
    moved = [move(part, rotation) for part in (senders, y.unsqueeze(2))]
    found = tensor_product(weight, moved[0], moved[1].squeeze(2), paths)
    torch.testing.assert_close(found, move(double, rotation), rtol=1e-12, atol=1e-12)


def move(h: Tensor, rotation: Tensor) -> Tensor:
    """Irreps (N, (lmax + 1)², U) after a rotation, (1, 3, 3)."""
    lmax = round(h.shape[1] ** 0.5) - 1
    matrix = representation(irreps(lmax), 3).matrices(rotation)[0]
    return torch.einsum("ij,nju->niu", matrix, h)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 2), (2, 2), (2, 1), (1, 2)])
@pytest.mark.parametrize("improper", [False, True], ids=["turned", "mirrored"])
def test_a_layer_turns_its_irreps_with_the_points(
    inputs: int, outputs: int, improper: bool
) -> None:
    layer = IrrepsConvolution(4, 3, 2, inputs, outputs).double()
    edges = Edges.from_index(torch.tensor([[0, 1, 2, 2, 3], [1, 0, 0, 2, 3]]), 5)
    x, h, scalars = normal(5, 3), normal(5, (inputs + 1) ** 2, 4), normal(5, 3)
    scale, envelope = normal(5), normal(5)
    rotation = turn() * (-1 if improper else 1)

    def run(x: Tensor, h: Tensor) -> Tensor:
        harmonics = solid_harmonics(x[edges.sender] - x[edges.receiver], 2)
        return layer(h, harmonics, scalars, edges, scale, envelope)

    found = run(x @ rotation[0].t(), move(h, rotation))
    torch.testing.assert_close(found, move(run(x, h), rotation), rtol=1e-11, atol=1e-11)


def test_messages_keep_the_size_of_features() -> None:
    weight, senders, y = normal(4000, 11, 3), normal(4000, 9, 3), normal(4000, 9)
    squares = tensor_product(weight, senders, y, natural_paths(2, 2, 2)).square()
    for order in range(3):
        assert float(squares[:, block(order)].mean()) == pytest.approx(1, rel=0.1)
