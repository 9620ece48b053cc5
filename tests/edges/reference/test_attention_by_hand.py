"""Attention diffusion a block at a time equals the formulas composed of primitives."""

import pytest
import torch
from loops import GRAPHS
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from eqflow.edges import attention_diffusion
from eqflow.edges.reference import attention
from eqflow.edges.reference.by_hand import parts

every_normaliser = pytest.mark.parametrize("normaliser", ["softmax", "squareplus"])
SHAPES = {"plain": ((3,), (2,)), "heads": ((2, 3), (2, 4)), "heads share x": ((2, 3), (4,))}
every_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


@pytest.fixture(params=[2, 10**6])
def _block(request, monkeypatch) -> None:
    """A receiver at a time, and all edges at once."""
    blocks = lambda edges, *_: edges.blocks(request.param)  # noqa: E731
    monkeypatch.setattr("eqflow.edges.reference.by_hand.attention.attention_blocks_of", blocks)


def inputs(nodes: int, shapes) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    wide, values = shapes
    return [
        torch.randn(nodes, *shape, generator=source, dtype=torch.float64).requires_grad_()
        for shape in (wide, wide, values)
    ]


@every_normaliser
@every_shape
@pytest.mark.parametrize(
    "name", ["uniform", "ragged", "isolated", "repeated and loops", "one receiver", "no edges"]
)
@pytest.mark.usefixtures("_block")
def test_value_and_gradients_are_those_of_the_formulas(name, shapes, normaliser) -> None:
    edges = GRAPHS[name].edges()
    leaves = inputs(edges.nodes, shapes)
    found = attention_diffusion(*leaves, edges, normaliser)
    expected = attention.composed(*leaves, edges, normaliser)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    covector = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    one, other = (torch.autograd.grad(out, leaves, covector) for out in (found, expected))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@every_normaliser
@every_shape
def test_two_derivatives_and_forward_mode_pass_the_numerical_check(shapes, normaliser) -> None:
    edges = GRAPHS["repeated and loops"].edges()
    leaves = inputs(edges.nodes, shapes)

    def run(*leaves: Tensor) -> Tensor:
        return attention_diffusion(*leaves, edges, normaliser)

    assert gradcheck(run, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(run, leaves)


@every_normaliser
def test_huge_logits_of_one_receiver_are_finite_and_leave_others_alone(normaliser) -> None:
    edges = GRAPHS["ragged"].edges()
    query, key, x = (value.detach() for value in inputs(edges.nodes, SHAPES["plain"]))
    before = attention_diffusion(query, key, x, edges, normaliser)
    query[0] *= 1e20
    after = attention_diffusion(query, key, x, edges, normaliser)
    assert after.isfinite().all()
    assert torch.equal(before[1:], after[1:])


def test_wide_rows_are_taken_in_smaller_blocks() -> None:
    edges = GRAPHS["ragged"].edges()
    narrow, wide = torch.zeros(edges.nodes, 1, 64), torch.zeros(edges.nodes, 8, 64)
    assert parts.attention_blocks_of(edges, narrow, narrow) is edges.blocks(
        parts.CPU_ATTENTION_BLOCK
    )
    assert parts.attention_blocks_of(edges, wide, wide) is edges.blocks(
        parts.CPU_ATTENTION_BLOCK // 8
    )
