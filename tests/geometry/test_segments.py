"""Segments: reductions equal a loop over segments, in any layout, and so do their derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from eqflow import rng
from eqflow.errors import ShapeError
from eqflow.geometry import Segments

LAYOUTS = {
    "ragged": [2, 0, 3, 1],
    "uniform": [3, 3, 3],
    "single": [4],
    "ones": [1, 1, 1],
    "all empty": [0, 0],
    "none": [],
    "last empty": [2, 0],
}
lengths = st.lists(st.integers(0, 5), max_size=6)


def segments(sizes):
    return Segments.of_lengths(torch.tensor(sizes, dtype=torch.int64))


def values(shape, *purpose):
    like = torch.zeros((), dtype=torch.float64)
    return rng.normal(tuple(shape), like, rng.generator(0, "test", *purpose))


def parts(rows, x):
    return list(x.split(rows.lengths.tolist())) if rows.count else []


# Values against a loop.


@given(sizes=lengths, tail=st.sampled_from([(), (2,), (2, 3)]))
def test_sum_mean_and_max_equal_a_loop_over_segments(sizes, tail):
    rows = segments(sizes)
    x = values((rows.rows, *tail))
    zero, lowest = torch.zeros(tail).double(), torch.full(tail, -torch.inf).double()
    expected = [
        (p.sum(0), p.mean(0), p.amax(0)) if len(p) else (zero, zero, lowest) for p in parts(rows, x)
    ]
    for index, found in enumerate((rows.sum(x), rows.mean(x), rows.max(x))):
        assert found.shape == (rows.count, *tail)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other[index], rtol=1e-14, atol=1e-14)


@given(sizes=lengths)
def test_expand_repeats_and_is_the_transpose_of_sum(sizes):
    rows = segments(sizes)
    x, y = values((rows.rows, 2), "x"), values((rows.count, 2), "y")
    torch.testing.assert_close(rows.expand(y), y.repeat_interleave(rows.lengths, 0))
    torch.testing.assert_close((rows.sum(x) * y).sum(), (x * rows.expand(y)).sum())


@given(sizes=lengths)
def test_the_mean_of_an_expanded_value_is_that_value(sizes):
    rows = segments(sizes)
    y = values((rows.count, 2))
    filled = rows.lengths > 0
    torch.testing.assert_close(rows.mean(rows.expand(y))[filled], y[filled])


@given(sizes=lengths)
def test_dense_and_back_is_the_identity_and_padding_is_the_fill(sizes):
    rows = segments(sizes)
    x = values((rows.rows, 2))
    dense = rows.to_dense(x, fill=7.0)
    assert dense.shape == (rows.count, rows.longest, 2)
    assert torch.equal(rows.from_dense(dense), x)
    assert int((dense == 7).sum()) == 2 * (rows.count * rows.longest - rows.rows)


@given(sizes=lengths, data=st.data())
def test_select_takes_segments_in_the_order_asked_for(sizes, data):
    rows = segments(sizes)
    if not rows.count:
        return
    chosen = data.draw(st.lists(st.integers(0, rows.count - 1), max_size=4))
    picked, index = rows.select(torch.tensor(chosen, dtype=torch.int64))
    x = values((rows.rows, 2))
    expected = [parts(rows, x)[i] for i in chosen]
    assert picked.lengths.tolist() == [len(part) for part in expected]
    for one, other in zip(parts(picked, x[index]), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_uniform_and_ragged_segments_agree(size):
    """The reshape that uniform segments take gives what the scatter gives."""
    uniform = segments([size] * 3)
    ragged = segments([size] * 3 + [size + 1])
    assert uniform.uniform == size
    assert ragged.uniform is None
    x = values((ragged.rows, 2))
    for name in ("sum", "mean", "max"):
        one = getattr(uniform, name)(x[: uniform.rows])
        other = getattr(ragged, name)(x)[:3]
        torch.testing.assert_close(one, other, rtol=1e-15, atol=1e-15)
    y = values((4, 2))
    assert torch.equal(uniform.expand(y[:3]), ragged.expand(y)[: uniform.rows])
    assert torch.equal(uniform.to_dense(x[: uniform.rows]), ragged.to_dense(x)[:3, :size])


@given(sizes=lengths)
def test_ids_and_place_name_each_row(sizes):
    rows = segments(sizes)
    expected = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
    assert list(zip(rows.ids.tolist(), rows.place.tolist(), strict=True)) == expected
    assert rows.longest == max(sizes, default=0)


# Derivatives.


def operations(rows):
    weight = values((rows.rows, 1), "weight")
    return {
        "sum": (lambda x: rows.sum(weight * x.sin()), rows.rows),
        "mean": (lambda x: rows.mean(weight * x.sin()), rows.rows),
        "expand": (lambda y: rows.expand(y.sin()) * weight, rows.count),
        "to_dense": (lambda x: rows.to_dense(x.sin()), rows.rows),
        "round trip": (lambda x: rows.from_dense(rows.to_dense(x.sin()) ** 2), rows.rows),
    }


@pytest.mark.parametrize("layout", ["ragged", "uniform", "single", "last empty"])
@pytest.mark.parametrize("name", ["sum", "mean", "expand", "to_dense", "round trip"])
def test_derivatives_of_first_and_second_order_are_right_in_both_modes(layout, name):
    fn, count = operations(segments(LAYOUTS[layout]))[name]
    x = values((count, 2), "point").requires_grad_()
    assert gradcheck(fn, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(fn, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("layout", ["ragged", "uniform"])
def test_max_has_the_gradient_of_the_largest_row(layout):
    rows = segments(LAYOUTS[layout])
    x = values((rows.rows, 2)).requires_grad_()
    kept = rows.lengths > 0
    assert gradcheck(lambda x: rows.max(x)[kept], x)


@pytest.mark.parametrize("layout", ["ragged", "uniform"])
@pytest.mark.parametrize("name", ["sum", "mean", "expand", "to_dense", "round trip"])
def test_batched_forward_mode_equals_the_jacobian(layout, name):
    """`vmap` of `jvp` is how the exact divergence is taken."""
    fn, count = operations(segments(LAYOUTS[layout]))[name]
    x = values((count, 2))
    basis = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    columns = torch.func.vmap(lambda v: torch.func.jvp(fn, (x,), (v,))[1])(basis)
    jacobian = torch.autograd.functional.jacobian(fn, x)
    torch.testing.assert_close(columns.flatten(1).T, jacobian.reshape(-1, x.numel()))


def test_forward_mode_works_on_plain_dual_tensors():
    rows = segments(LAYOUTS["ragged"])
    x, v = values((rows.rows, 2), "x"), values((rows.rows, 2), "v")
    with dual_level():
        tangent = unpack_dual(rows.sum(make_dual(x, v))).tangent
    torch.testing.assert_close(tangent, rows.sum(v))


def test_sums_in_float32_are_the_same_every_time():
    rows = segments([1000, 0, 999, 1001])
    x = values((rows.rows, 3)).float()
    assert all(torch.equal(rows.sum(x), rows.sum(x)) for _ in range(5))


# What a caller can get wrong.


@pytest.mark.parametrize(
    "ptr",
    [
        torch.tensor([0.0, 1.0]),
        torch.tensor([0, 2], dtype=torch.int32),
        torch.tensor([[0, 1]]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([1, 2]),
        torch.tensor([0, 3, 2]),
    ],
)
def test_a_ptr_that_is_none_is_refused(ptr):
    with pytest.raises(ShapeError, match="ptr"):
        Segments(ptr)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_another_length_are_refused(layout):
    rows = segments(LAYOUTS[layout])
    for call in (rows.sum, rows.mean, rows.max, rows.to_dense):
        with pytest.raises(ShapeError, match="rows"):
            call(torch.zeros(rows.rows + 1, 2))
    with pytest.raises(ShapeError, match="segments"):
        rows.expand(torch.zeros(rows.count + 1, 2))
    with pytest.raises(ShapeError, match="shape"):
        rows.sum(torch.zeros(()))


@pytest.mark.parametrize("sizes", [[2, 3, 1], [2, 2]], ids=["ragged", "uniform"])
def test_segments_made_and_used_in_inference_mode_can_be_trained_through_afterwards(sizes):
    with torch.inference_mode():
        rows = segments(sizes)
        assert rows.expand(rows.mean(torch.ones(rows.rows))).shape == rows.place.shape
    x = torch.ones(rows.rows, 2, requires_grad=True)
    (x * rows.expand(rows.mean(x)) * rows.place.unsqueeze(1)).sum().backward()
    assert x.grad is not None
