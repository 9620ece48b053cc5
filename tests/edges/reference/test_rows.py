"""Kernels for rows give what the formulas of gathered rows give, and only where they are meant."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from loops import relative_error
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from eqflow.edges import (
    Edges,
    attention_diffusion,
    attention_weights,
    difference_dot,
    edge_dot,
    normalised,
    weighted_difference,
    weighted_sum,
)
from eqflow.edges.reference import primitives as plain
from eqflow.edges.reference.by_hand import rows
from eqflow.geometry import Segments

SIZES = ("LARGE", "LARGE_DIFFERENCE", "LARGE_WEIGHTS", "COLUMNS", "COLUMNS_OF_DIFFERENCE")
KERNELS = ("weighted_sum", "dot", "normalised")


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def graph(*nodes: int, degree: int = 6) -> Edges:
    """Directed clouds with repeated edges, loops, and a node in each that no edge goes to."""
    source, pairs = torch.Generator().manual_seed(0), []
    for k, n in enumerate(nodes):
        pair = torch.randint(max(n, 1), (2, degree * n), generator=source)
        pairs.append(pair[:, pair[1] != 0] + sum(nodes[:k]))
    ptr = torch.tensor([0, *nodes]).cumsum(0)
    return Edges.from_index(torch.cat(pairs, 1), sum(nodes), ptr)


@contextmanager
def counted() -> Iterator[list[str]]:
    """Names of the kernels that run inside."""
    ran: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            kernel = getattr(rows, name)

            def run(*values, name: str = name, kernel: Callable = kernel) -> Tensor:
                ran.append(name)
                return kernel(*values)

            patch.setattr(rows, name, run)
        yield ran


@contextmanager
def sizes(value: int) -> Iterator[None]:
    """Kernels from these sizes on: 1 for always."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SIZES:
            patch.setattr(rows, name, value)
        yield


def by_formulas(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs) -> Tensor:
        with sizes(2**62):
            return call(*inputs)

    return run


CALLS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[str | int, ...], ...]]] = {
    "weighted_sum": (weighted_sum, (("E",), ("N", 20))),
    "weighted_sum, heads": (weighted_sum, (("E", 3), ("N", 3, 16))),
    "weighted_sum, heads share x": (weighted_sum, (("E", 3), ("N", 17))),
    "weighted_sum, heads share w": (weighted_sum, (("E",), ("N", 3, 8))),
    "weighted_sum, one head": (weighted_sum, (("E", 1), ("N", 1, 16))),
    "weighted_sum, more axes": (weighted_sum, (("E",), ("N", 2, 3, 4))),
    "weighted_difference": (weighted_difference, (("E",), ("N", 20))),
    "weighted_difference, heads": (weighted_difference, (("E", 3), ("N", 3, 16))),
    "weighted_difference, heads share x": (weighted_difference, (("E", 3), ("N", 17))),
    "weighted_difference, heads share w": (weighted_difference, (("E",), ("N", 3, 8))),
    "edge_dot": (edge_dot, (("N", 20), ("N", 20))),
    "edge_dot, heads": (edge_dot, (("N", 3, 16), ("N", 3, 16))),
    "difference_dot": (difference_dot, (("N", 20), ("N", 20))),
    "difference_dot, heads": (difference_dot, (("N", 3, 16), ("N", 3, 16))),
    "difference_dot, heads share x": (difference_dot, (("N", 3, 17), ("N", 17))),
    "attention_diffusion": (attention_diffusion, (("N", 3, 16), ("N", 3, 16), ("N", 16))),
} | {
    f"{name}, {normaliser}, {end}": (
        lambda *values, call=call, normaliser=normaliser, end=end: call(*values, normaliser, end),
        shapes,
    )
    for normaliser in ("softmax", "squareplus")
    for end in ("receiver", "sender")
    for name, call, shapes in (
        ("normalised", normalised, (("E",),)),
        ("normalised, heads", normalised, (("E", 3),)),
        ("attention_weights", attention_weights, (("N", 16), ("N", 16))),
        ("attention_weights, heads", attention_weights, (("N", 3, 16), ("N", 3, 16))),
    )
}
every_call = pytest.mark.parametrize(("call", "shapes"), CALLS.values(), ids=CALLS)
GRAPHS = {"one": (500,), "several": (300, 1, 0, 200), "alike": (250, 250)}


def inputs(shapes, edges: Edges, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    size = {"N": edges.nodes, "E": edges.count}
    return [
        drawn(*(size.get(axis, axis) for axis in shape), dtype=dtype, seed=k)
        for k, shape in enumerate(shapes)
    ]


@every_call
@pytest.mark.parametrize("nodes", GRAPHS.values(), ids=GRAPHS)
def test_value_and_two_derivatives_are_those_of_the_formulas(call, shapes, nodes) -> None:
    edges = graph(*nodes)
    leaves = [value.requires_grad_() for value in inputs(shapes, edges)]

    def derivatives(call) -> list[Tensor]:
        value = call(*leaves, edges)
        covector = drawn(*value.shape, seed=9)
        first = torch.autograd.grad(value, leaves, covector, create_graph=True)
        total = sum((g * drawn(*g.shape, seed=8)).sum() for g in first)
        second = torch.autograd.grad(total, leaves, allow_unused=True)
        return [value, *first, *(g for g in second if g is not None)]

    with sizes(1), counted() as ran:
        found = derivatives(call)
    assert ran
    with sizes(2**62), counted() as ran:
        expected = derivatives(call)
    assert not ran
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-12


@every_call
def test_derivatives_pass_the_numerical_check(call, shapes) -> None:
    edges = graph(4, 3, degree=2)
    leaves = [value.requires_grad_() for value in inputs(shapes, edges)]
    with sizes(1):
        options = {"check_batched_grad": True, "check_forward_ad": True, "fast_mode": True}
        assert gradcheck(lambda *values: call(*values, edges), leaves, **options)
        assert gradgradcheck(lambda *values: call(*values, edges), leaves, fast_mode=True)


@every_call
def test_derivatives_by_one_input_alone_are_those_by_all(call, shapes) -> None:
    edges = graph(40)
    values = inputs(shapes, edges)
    with sizes(1):
        leaves = [value.clone().requires_grad_() for value in values]
        every = torch.autograd.grad(call(*leaves, edges).square().sum(), leaves)
        for k, expected in enumerate(every):
            alone = values[k].clone().requires_grad_()
            found = call(*values[:k], alone, *values[k + 1 :], edges)
            (found,) = torch.autograd.grad(found.square().sum(), alone)
            assert torch.equal(found, expected)


@every_call
def test_values_with_gaps_and_covectors_of_one_number_are_taken(call, shapes) -> None:
    edges = graph(60)
    values = inputs(shapes, edges)
    gaps = [torch.stack([value, value], -1)[..., 0].requires_grad_() for value in values]
    turned = [
        value.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for value in values
    ]
    leaves = [value.requires_grad_() for value in values]
    with sizes(1):
        found, expected = call(*leaves, edges), by_formulas(call)(*leaves, edges)
        first = torch.autograd.grad(expected.sum(), leaves)
        for strided in (gaps, turned):
            found = call(*strided, edges)
            assert relative_error(found, expected) < 1e-13
            for one, other in zip(torch.autograd.grad(found.sum(), strided), first, strict=True):
                assert relative_error(one, other) < 1e-12


@every_call
def test_values_are_the_same_without_gradients_and_in_inference_mode(call, shapes) -> None:
    values = inputs(shapes, graph(60))
    with sizes(1):
        expected = call(*[value.clone().requires_grad_() for value in values], graph(60))
        with torch.no_grad():
            assert torch.equal(call(*values, graph(60)), expected)
        edges = graph(60)
        with torch.inference_mode(), counted() as ran:
            assert torch.equal(call(*values, edges), expected)
        assert ran
        leaves = [value.requires_grad_() for value in values]
        torch.autograd.grad(call(*leaves, edges).sum(), leaves)  # with what inference mode made


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_graph_of_a_batch_does_not_change_a_bit_of_another(call, shapes, dtype) -> None:
    edges = graph(200, 100)
    values = inputs(shapes, edges, dtype)
    others = [value.clone() for value in values]
    n = int(edges.clouds.ptr[1])
    e = int(edges.incoming.ptr[n])
    for value in others:
        value[n if len(value) == edges.nodes else e :] = torch.nan
    with sizes(1):
        one, other = call(*values, edges), call(*others, edges)
    end = n if len(one) == edges.nodes else e
    assert torch.equal(one[:end], other[:end])
    assert other[end:].isnan().any()


@every_call
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_types_go_to_the_formulas(call, shapes, dtype) -> None:
    edges = graph(30)
    with sizes(1), counted() as ran:
        assert call(*inputs(shapes, edges, dtype), edges).dtype is dtype
    assert not ran


@every_call
def test_transforms_and_autocast_go_to_the_formulas(call, shapes) -> None:
    edges = graph(30)
    values = inputs(shapes, edges)
    with sizes(1), counted() as ran:
        torch.func.vmap(lambda *v: call(*v, edges))(*[value[None] for value in values])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            call(*values, edges)
    assert not ran


@pytest.mark.parametrize(
    "call", [weighted_sum, weighted_difference, edge_dot, difference_dot], ids=lambda c: c.__name__
)
def test_several_types_go_to_the_formulas(call) -> None:
    edges = graph(30)
    first = drawn(edges.nodes if "dot" in call.__name__ else edges.count, dtype=torch.float32)
    x = drawn(edges.nodes, 16)
    with sizes(1), counted() as ran:
        found = call(first.unsqueeze(1) * x.float() if "dot" in call.__name__ else first, x, edges)
    assert found.dtype is torch.float64
    assert not ran


@every_call
def test_a_build_without_the_kernels_has_the_formulas(call, shapes, monkeypatch) -> None:
    monkeypatch.setattr(rows, "_are_there", lambda: False)
    edges = graph(30)
    with sizes(1), counted() as ran:
        call(*inputs(shapes, edges), edges)
    assert not ran


def test_a_kernel_that_raises_is_not_there(monkeypatch) -> None:
    def missing(*_, **__) -> None:
        raise RuntimeError("needs MKL")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", missing)
    assert rows._are_there.__wrapped__() is False


def test_positions_and_small_graphs_are_as_they_were() -> None:
    large, small = graph(4000), graph(50)
    with counted() as ran:
        for edges, width in ((large, 3), (small, 16)):
            w, x = drawn(edges.count), drawn(edges.nodes, width)
            pairs = (
                (weighted_sum, plain.weighted_sum),
                (
                    weighted_difference,
                    plain.weighted_difference,
                ),
            )
            for mine, formulas in pairs:
                assert torch.equal(mine(w, x, edges), formulas(w, x, edges))
            for mine, formulas in (
                (edge_dot, plain.edge_dot),
                (difference_dot, plain.difference_dot),
            ):
                assert torch.equal(mine(x, x, edges), formulas(x, x, edges))
    assert not ran


def test_wide_rows_of_large_graphs_go_to_the_kernels() -> None:
    edges = graph(1000)
    w, x = drawn(edges.count), drawn(edges.nodes, 16)
    for call in (
        lambda: weighted_sum(w, x, edges),
        lambda: weighted_difference(w, x, edges),
        lambda: edge_dot(x, x, edges),
        lambda: difference_dot(x, x, edges),
        lambda: normalised(w, edges),
    ):
        with counted() as ran:
            call()
        assert len(ran) == 1


# Differences.


@pytest.mark.parametrize("nodes", GRAPHS.values(), ids=GRAPHS)
def test_wide_differences_keep_their_digits_at_an_offset_of_a_million(nodes) -> None:
    edges = graph(*nodes)
    x = drawn(edges.nodes, 32).float() * 8 + 1e6 * drawn(edges.clouds.count, 32)[edges.clouds.ids]
    x, w, g = x.float(), drawn(edges.count).float(), drawn(edges.nodes, 32, seed=2).float()
    for call, other in ((weighted_difference, w), (difference_dot, g)):
        expected = by_formulas(call)(other.double(), x.double(), edges)
        with sizes(1):
            assert relative_error(call(other, x, edges), expected) < 1e-6
    split = plain.weighted_sum(w, x, edges) - plain.sum_receiver(w, edges).unsqueeze(1) * x
    assert (
        relative_error(split, by_formulas(weighted_difference)(w.double(), x.double(), edges))
        > 1e-4
    )


def test_a_row_that_is_not_finite_reaches_what_is_joined_to_it_alone() -> None:
    edges = graph(100)
    x = drawn(edges.nodes, 16)
    x[0], x[7, 3] = torch.nan, torch.inf  # nothing goes to node 0
    w = torch.ones(edges.count, dtype=torch.float64)
    expected = by_formulas(weighted_difference)(w, x, edges)
    with sizes(1):
        found = weighted_difference(w, x, edges)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert (found[0] == 0).all()
    finite = expected.isfinite()
    assert relative_error(found[finite], expected[finite]) < 1e-13


def test_rows_are_centred_in_their_own_cloud() -> None:
    clouds = Segments(torch.tensor([0, 3, 3, 4, 10]))
    x = drawn(10, 2, 3)
    mean = clouds.mean(rows.centred(x, clouds))
    assert mean.abs().max() < 1e-15
    assert rows.centred(x[:0], Segments(torch.tensor([0]))).shape == (0, 2, 3)


# The graph of heads.


def test_edges_of_heads_join_the_same_heads_in_the_order_of_receivers() -> None:
    edges = graph(5, 4, degree=3)
    heads = edges.by_heads(3)
    assert edges.by_heads(3) is heads
    receiver = Segments(heads.ptr.long()).ids
    assert torch.equal(receiver % 3, heads.sender % 3)
    assert torch.equal(heads.sender // 3, heads.node)
    edge, head = heads.order // 3, heads.order % 3
    assert torch.equal(edges.receiver[edge] * 3 + head, receiver)
    assert torch.equal(edges.sender[edge], heads.node)
    values = drawn(edges.count, 3)
    assert torch.equal(heads.split(values), values[edge, head])
    assert torch.equal(heads.join(heads.split(values)), values)


# Warnings.


def test_no_warning_of_the_kernels_reaches_a_user() -> None:
    code = """
import torch
from eqflow.edges import Edges, attention_weights, edge_dot, weighted_sum
edges = Edges.from_index(torch.randint(500, (2, 5000)), 500)
x = torch.randn(500, 8, 16, requires_grad=True)
a = attention_weights(x, x, edges)
weighted_sum(a, x, edges).sum().backward()
edge_dot(x, x, edges).sum().backward()
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
