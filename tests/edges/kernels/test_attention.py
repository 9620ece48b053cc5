import pytest
import torch
from loops import GRAPHS, relative_error
from tolerances import TOLERANCE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vjp, vmap

from eqflow.edges import Edges, attention_diffusion, use_backend
from eqflow.edges.reference import attention_diffusion as meaning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NORMALISERS = ("softmax", "squareplus")
SHAPES = {"plain": ((3,), (5,)), "heads": ((2, 3), (2, 5)), "heads share x": ((2, 3), (5,))}

each_normaliser = pytest.mark.parametrize("normaliser", NORMALISERS)
each_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


@pytest.fixture(autouse=True)
def _on_triton():
    with use_backend("triton", strict=True):
        yield


def drawn(edges: Edges, shapes, dtype=torch.float64, size: float = 1.0) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    each = [(edges.nodes, *shape) for shape in (shapes[0], shapes[0], shapes[1])]
    query, key, x = (torch.randn(s, generator=source, dtype=torch.float64) for s in each)
    return [v.to(DEVICE, dtype).requires_grad_() for v in (size * query, size * key, x)]


def expected(inputs: list[Tensor], edges: Edges, normaliser: str) -> tuple[Tensor, ...]:
    """Value and first derivatives by the meaning, in float64."""
    dtype = inputs[0].dtype
    inputs = [value.detach().double().requires_grad_() for value in inputs]
    with use_backend("torch"):
        out = meaning(*inputs, edges, normaliser)
        return out, *torch.autograd.grad(out, inputs, cotangent(out, dtype).double())


def found(inputs: list[Tensor], edges: Edges, normaliser: str) -> tuple[Tensor, ...]:
    out = attention_diffusion(*inputs, edges, normaliser)
    return out, *torch.autograd.grad(out, inputs, cotangent(out, out.dtype))


def cotangent(out: Tensor, dtype: torch.dtype) -> Tensor:
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return g.to(DEVICE, dtype)


def hub(leaves: int, others: int = 40) -> Edges:
    """One node with edges to and from all of `leaves` others, and a few random edges."""
    source = torch.Generator().manual_seed(1)
    n = leaves + 1
    spokes = torch.stack([torch.arange(1, n), torch.zeros(leaves, dtype=torch.int64)])
    rest = torch.randint(n, (2, others), generator=source)
    return Edges.from_index(torch.cat([spokes, spokes.flip(0), rest], 1).to(DEVICE), n)


@each_normaliser
@each_shape
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_value_and_derivatives_are_those_of_the_meaning(graph, dtype, shapes, normaliser) -> None:
    edges = graph.edges(DEVICE)
    inputs = drawn(edges, shapes, dtype)
    for one, other in zip(
        found(inputs, edges, normaliser), expected(inputs, edges, normaliser), strict=True
    ):
        assert one.dtype == dtype
        assert relative_error(one, other) < TOLERANCE[dtype]


@each_normaliser
def test_a_node_with_many_neighbours_is_shared_out_and_added_up(normaliser) -> None:
    edges = hub(700)
    inputs = drawn(edges, SHAPES["heads share x"])
    for one, other in zip(
        found(inputs, edges, normaliser), expected(inputs, edges, normaliser), strict=True
    ):
        assert relative_error(one, other) < 1e-13


@each_normaliser
@pytest.mark.parametrize("width", [1, 33, 200, 256])
def test_any_width_up_to_256_is_taken(width: int, normaliser: str) -> None:
    edges = GRAPHS["ragged"].edges(DEVICE)
    inputs = drawn(edges, ((width,), (257 - width,)))
    for one, other in zip(
        found(inputs, edges, normaliser), expected(inputs, edges, normaliser), strict=True
    ):
        assert relative_error(one, other) < 1e-13


@each_normaliser
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_huge_logits_give_finite_values_and_derivatives(dtype, normaliser: str) -> None:
    edges = GRAPHS["repeated and loops"].edges(DEVICE)
    inputs = drawn(edges, SHAPES["heads"], dtype, size=1e10)
    assert all(part.isfinite().all() for part in found(inputs, edges, normaliser))


def test_huge_logits_leave_the_nearest_key_alone() -> None:
    edges = Edges.from_index(torch.tensor([[1, 2], [0, 0]], device=DEVICE), 3)
    query, key, x = (v.detach() for v in drawn(edges, SHAPES["plain"], torch.float32))
    key[1] = 1e10 * query[0]
    key[2] = -key[1]
    assert torch.equal(attention_diffusion(query, key, x, edges)[0], x[1] - x[0])


@each_normaliser
def test_logits_of_one_row_do_not_change_another(normaliser: str) -> None:
    edges = GRAPHS["unsorted clouds"].edges(DEVICE)
    query, key, x = drawn(edges, SHAPES["heads"])
    other = torch.cat([query[:3], 1e5 * query[3:]])
    one = attention_diffusion(query, key, x, edges, normaliser)[:3]
    assert torch.equal(attention_diffusion(other, key, x, edges, normaliser)[:3], one)


def test_differences_keep_their_digits_at_an_offset_of_a_million() -> None:
    edges = Edges.complete(torch.tensor([0, 20, 50], device=DEVICE))
    query, key, x = (v.detach() for v in drawn(edges, ((8,), (3,)), torch.float32))
    inputs = [query.requires_grad_(), key.requires_grad_(), (x + 1e6).requires_grad_()]
    for one, other in zip(
        found(inputs, edges, "softmax"), expected(inputs, edges, "softmax"), strict=True
    ):
        assert relative_error(one, other) < 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_values_are_added_up_in_float32(dtype: torch.dtype) -> None:
    edges = hub(300)
    inputs = drawn(edges, SHAPES["heads share x"], dtype)
    # One rounding of the result; the interpreter cuts bfloat16 off instead.
    tolerance = 2 * torch.finfo(dtype).eps
    for one, other in zip(
        found(inputs, edges, "softmax"), expected(inputs, edges, "softmax"), strict=True
    ):
        assert one.dtype == dtype
        assert relative_error(one, other) < tolerance


@pytest.mark.parametrize(
    ("shapes", "normaliser"),
    [
        (SHAPES["heads share x"], "softmax"),
        (SHAPES["plain"], "squareplus"),
        pytest.param(SHAPES["plain"], "softmax", marks=pytest.mark.slow),
        pytest.param(SHAPES["heads"], "softmax", marks=pytest.mark.slow),
        pytest.param(SHAPES["heads"], "squareplus", marks=pytest.mark.slow),
        pytest.param(SHAPES["heads share x"], "squareplus", marks=pytest.mark.slow),
    ],
)
def test_derivatives_of_two_orders_and_forward_mode_are_those_of_the_value(
    shapes, normaliser: str
) -> None:
    edges = GRAPHS["repeated and loops"].edges(DEVICE)
    inputs = drawn(edges, shapes)

    def fn(*values: Tensor) -> Tensor:
        return attention_diffusion(*values, edges, normaliser)

    assert gradcheck(fn, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(
        fn, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
    )


@each_normaliser
def test_the_fused_derivative_is_the_composed_one(normaliser: str) -> None:
    edges = GRAPHS["ragged"].edges(DEVICE)
    inputs = drawn(edges, SHAPES["heads share x"])
    out = attention_diffusion(*inputs, edges, normaliser).sin().sum()
    fused = torch.autograd.grad(out, inputs, retain_graph=True)
    composed = torch.autograd.grad(out, inputs, create_graph=True)
    for one, other in zip(fused, composed, strict=True):
        assert relative_error(one, other) < 1e-13


@each_shape
@pytest.mark.parametrize(
    "batched",
    [
        pytest.param((True, True, True), marks=pytest.mark.slow),
        (True, False, False),
        (False, True, True),
    ],
)
def test_batches_of_inputs_directions_and_cotangents_give_each_ones_result(shapes, batched) -> None:
    edges = GRAPHS["repeated and loops"].edges(DEVICE)
    inputs = [value.detach() for value in drawn(edges, shapes)]
    scales = torch.tensor([1.0, -0.5, 2.0], device=DEVICE, dtype=torch.float64)
    in_dims = tuple(0 if is_batched else None for is_batched in batched)

    def stacked(values: list[Tensor]) -> list[Tensor]:
        return [
            torch.stack([s * v for s in scales]) if is_batched else v
            for v, is_batched in zip(values, batched, strict=True)
        ]

    def fn(*values: Tensor) -> Tensor:
        return attention_diffusion(*values, edges)

    def pushed(*tangents: Tensor) -> Tensor:
        return jvp(fn, tuple(inputs), tangents)[1]

    for each in (fn, pushed):
        together = vmap(each, in_dims)(*stacked(inputs))
        for k in range(len(scales)):
            alone = [v[k] if b else v for v, b in zip(stacked(inputs), batched, strict=True)]
            assert relative_error(together[k], each(*alone)) < 1e-13

    value, pull = vjp(fn, *inputs)
    cotangents = torch.stack([s * value for s in scales])
    for with_graph in (True, False):
        with torch.set_grad_enabled(with_graph):
            together = vmap(pull)(cotangents)
            for k in range(len(scales)):
                for one, other in zip(together, pull(cotangents[k]), strict=True):
                    assert relative_error(one[k], other) < 1e-13


def test_repeats_are_equal_to_the_last_bit() -> None:
    edges = hub(300)
    inputs = drawn(edges, SHAPES["heads"], torch.float32)
    first = found(inputs, edges, "softmax")
    again = found(inputs, edges, "softmax")
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_strided_inputs_are_read_as_they_are() -> None:
    edges = GRAPHS["ragged"].edges(DEVICE)
    query, key, x = drawn(edges, SHAPES["heads"])
    wide = torch.stack([query, key], -1)
    out = attention_diffusion(wide[..., 0], wide[..., 1], x.mT.contiguous().mT, edges)
    assert torch.equal(out, attention_diffusion(query, key, x, edges))
