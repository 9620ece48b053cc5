"""What every backbone promises, and what each is by its formula."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from eqflow.errors import NumericalError, ShapeError, UsageError
from eqflow.geometry import Segments
from eqflow.nn.backbones import (
    AbstractBackbone,
    DGCNNBackbone,
    FlatMLPBackbone,
    PointNetBackbone,
    TransformerBackbone,
)
from eqflow.nn.backbones.abstract import LayerNorm
from eqflow.testing import assert_equivariant, assert_independent, clouds

# Of any sizes, permutation equivariant, smooth unless their name says otherwise.
MAKERS: dict[str, Callable[..., AbstractBackbone]] = {
    "transformer": lambda *a, **o: TransformerBackbone(*a, width=8, layers=2, heads=2, **o),
    "transformer with frequencies": lambda *a, **o: TransformerBackbone(
        *a, width=6, layers=1, heads=3, frequencies=2, **o
    ),
    "pointnet, mean": lambda *a, **o: PointNetBackbone(*a, width=8, pool="mean", **o),
    "dgcnn of all points": lambda *a, **o: DGCNNBackbone(
        *a, width=8, layers=2, neighbours=None, **o
    ),
    "pointnet, max": lambda *a, **o: PointNetBackbone(*a, width=8, **o),
    "dgcnn": lambda *a, **o: DGCNNBackbone(*a, width=8, layers=2, neighbours=3, **o),
    "dgcnn, fixed graph": lambda *a, **o: DGCNNBackbone(
        *a, width=8, layers=2, neighbours=3, dynamic=False, **o
    ),
}
SMOOTH = list(MAKERS)[:4]
every_backbone = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
smooth_backbones = pytest.mark.parametrize("make", [MAKERS[name] for name in SMOOTH], ids=SMOOTH)
either = pytest.mark.parametrize("pooled", [False, True], ids=["a row a point", "a row a cloud"])
PTR = torch.tensor([0, 4, 5, 5, 8])
SHAPES = dict(clouds())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@either
@every_backbone
def test_permuted_points_give_permuted_rows_and_clouds_are_independent(
    make: Callable, pooled: bool
) -> None:
    backbone = make(3, 1, 2, pooled=pooled).double()
    # Where several points are equally near, as in pyridine, which are neighbours is arbitrary.
    chooses = isinstance(backbone, DGCNNBackbone) and backbone.neighbours is not None
    symmetric = () if chooses else ("pyridine", "coincident")
    for name in ("generic", "one_point", "two_points", *symmetric):
        batch = SHAPES[name]

        def run(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
            return backbone(x, ptr, h / 10)

        assert_equivariant(run, batch, group="S(n)", output="scalar")
        assert_independent(run, batch)


@every_backbone
def test_a_cloud_does_not_feel_its_batch_mates_whatever_their_sizes(make: Callable) -> None:
    backbone = make(2, 0, 3).double()
    x = normal(8, 2)
    together = backbone(x, PTR)
    for start, end in pairwise(PTR.tolist()):
        alone = backbone(x[start:end], torch.tensor([0, end - start]))
        torch.testing.assert_close(together[start:end], alone, rtol=1e-12, atol=1e-12)
    other = backbone(torch.cat([x[:4], 100 * normal(4, 2)]), PTR)
    torch.testing.assert_close(other[:4], together[:4], rtol=1e-12, atol=1e-12)


@either
@every_backbone
def test_turning_the_points_is_noticed(make: Callable, pooled: bool) -> None:
    backbone, x = make(2, 0, 3, pooled=pooled).double(), normal(5, 2)
    ptr = torch.tensor([0, 5])
    turned = x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert (backbone(turned, ptr) - backbone(x, ptr)).norm() > 1e-3


@either
@smooth_backbones
@pytest.mark.parametrize("ptr", [torch.tensor([0, 2, 4]), torch.tensor([0, 3, 3, 4])], ids=str)
def test_a_smooth_backbone_can_be_differentiated_twice(
    make: Callable, pooled: bool, ptr: Tensor
) -> None:
    backbone = make(2, 1, 2, pooled=pooled).double()
    x, h = normal(4, 2).requires_grad_(), normal(4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, h: backbone(x, ptr, h), (x, h))
    assert torch.autograd.gradgradcheck(lambda x, h: backbone(x, ptr, h), (x, h))


@smooth_backbones
@pytest.mark.parametrize("ptr", [torch.tensor([0, 2, 4]), torch.tensor([0, 3, 3, 4])], ids=str)
def test_forward_mode_is_reverse_mode_also_mapped_and_differentiated(
    make: Callable, ptr: Tensor
) -> None:
    backbone, x = make(2, 0, 2).double(), normal(4, 2)

    def push(v: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: backbone(x, ptr), (x,), (v,))[1]

    jacobian = torch.autograd.functional.jacobian(lambda x: backbone(x, ptr), x).reshape(8, 8)
    basis = torch.eye(8, dtype=torch.float64).reshape(8, 4, 2)
    pushed = torch.func.vmap(push)(basis).reshape(8, 8).t()
    torch.testing.assert_close(pushed, jacobian, rtol=1e-11, atol=1e-12)

    def trace() -> Tensor:
        return torch.func.vmap(push)(basis).reshape(8, 8).trace()

    weight = next(backbone.parameters())
    slope = torch.autograd.grad(trace(), weight)[0].reshape(-1)[0]
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight.view(-1)[0] += step
            ends.append(trace())
            weight.view(-1)[0] -= step
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@either
@every_backbone
def test_every_parameter_has_a_gradient_and_outputs_are_of_order_one(
    make: Callable, pooled: bool
) -> None:
    backbone = make(3, 2, 16, pooled=pooled).double()
    out = backbone(normal(120, 3), torch.arange(0, 121, 12), normal(120, 2))
    assert 0.1 < float(out.detach().square().mean().sqrt()) < 3
    out.square().sum().backward()
    dead = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@either
@every_backbone
@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [0, 3, 0], [1]], ids=str)
def test_empty_clouds_and_batches_give_finite_outputs_and_gradients(
    make: Callable, pooled: bool, lengths: list[int]
) -> None:
    backbone, ptr = (
        make(3, 0, 2, pooled=pooled).double(),
        Segments.of_lengths(torch.tensor(lengths, dtype=torch.int64)),
    )
    x = normal(sum(lengths), 3).requires_grad_()
    out = backbone(x, ptr)
    assert out.shape == (len(lengths) if pooled else sum(lengths), 2)
    first = torch.autograd.grad(
        out.square().sum(), [x, *backbone.parameters()], allow_unused=True, materialize_grads=True
    )
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in first)


@every_backbone
def test_coincident_points_have_finite_derivatives(make: Callable) -> None:
    backbone, x = make(3, 0, 2).double(), torch.ones(4, 3, dtype=torch.float64).requires_grad_()
    out = backbone(x, torch.tensor([0, 4]))
    first = torch.autograd.grad(out.square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(
        first.square().sum(), [x, *backbone.parameters()], allow_unused=True
    )
    assert all(g.isfinite().all() for g in (out, first, *second) if g is not None)


@every_backbone
def test_segments_and_their_starts_are_the_same(make: Callable) -> None:
    backbone, x = make(3, 0, 2), torch.randn(8, 3)
    assert torch.equal(backbone(x, PTR), backbone(x, Segments(PTR)))
    assert torch.equal(backbone(x, PTR), backbone(x, PTR, x.new_zeros(8, 0)))


@every_backbone
def test_not_a_number_in_one_cloud_does_not_reach_another(make: Callable) -> None:
    backbone, h = make(3, 1, 2), torch.zeros(8, 1)
    h[5] = math.nan
    if isinstance(backbone, DGCNNBackbone) and backbone.dynamic and backbone.neighbours:
        with pytest.raises(NumericalError, match="not finite"):  # features have no neighbours
            backbone(torch.randn(8, 3), PTR, h)
        return
    out = backbone(torch.randn(8, 3), PTR, h)
    assert out[:5].isfinite().all()
    assert out[5:].isnan().any()


def test_the_layer_norm_is_that_of_torch() -> None:
    ours, theirs, h = LayerNorm(5).double(), torch.nn.LayerNorm(5).double(), normal(4, 5)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(h), theirs(h), rtol=1e-12, atol=1e-12)


# Each by its formula.


def test_the_transformer_is_its_formulas() -> None:
    backbone = TransformerBackbone(2, 1, 3, width=8, layers=2, heads=2, frequencies=2).double()
    x, features = normal(8, 2), normal(8, 1)
    found = backbone(x, PTR, features)
    for start, end in pairwise(PTR.tolist()):
        here = x[start:end]
        waves = [
            f(2**k * here[:, [a]]) for f in (torch.cos, torch.sin) for a in (0, 1) for k in (0, 1)
        ]
        h = backbone.embed(torch.cat([here, features[start:end], *waves], 1))
        for block in backbone.layers:
            q, k, v = block.projections(block.attention_norm(h)).chunk(3, 1)
            heads = [part.unflatten(1, (2, 4)).transpose(0, 1) for part in (q, k, v)]
            mixed = scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
            h = h + block.mix(mixed)
            inner = block.perceptron[0](block.perceptron_norm(h))
            h = h + block.perceptron[2](silu(inner))
        expected = backbone.readout(backbone.norm(h))
        torch.testing.assert_close(found[start:end], expected, rtol=1e-11, atol=1e-12)


def test_an_edge_convolution_is_its_formula() -> None:
    backbone = DGCNNBackbone(2, 0, 3, width=4, layers=1, neighbours=2).double()
    x = normal(5, 2)
    layer, rows = backbone.layers[0], []
    for i in range(5):
        nearest = (x - x[i]).norm(dim=1).argsort()[1:3]
        inner = layer.own(x[i]) + (x[nearest] - x[i]) @ layer.difference.weight.t()
        m = layer.message(silu(inner))
        rows.append((m.softmax(0) * m).sum(0))
    expected = backbone.head(torch.stack(rows))
    found = backbone(x, torch.tensor([0, 5]))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_pointnet_is_its_formula(pool: str) -> None:
    x, ptr = normal(6, 2), torch.tensor([0, 2, 6])
    backbone = PointNetBackbone(2, 0, 3, width=4, pool=pool).double()
    whole = PointNetBackbone(2, 0, 3, width=4, pool=pool, pooled=True).double()
    for part in (x[:2], x[2:]):
        own = backbone.point(part)
        common = own.max(0).values if pool == "max" else own.mean(0)
        rows = torch.cat([own, common.expand(len(own), 4)], 1)
        found = (
            backbone(x, ptr)[: len(part)]
            if part is x[:2]
            else backbone(part, torch.tensor([0, len(part)]))
        )
        torch.testing.assert_close(found, backbone.head(rows))
        own = whole.point(part)
        common = own.max(0).values if pool == "max" else own.mean(0)
        alone = whole(part, torch.tensor([0, len(part)]))
        torch.testing.assert_close(alone, whole.head(common).unsqueeze(0))


@either
def test_the_flat_perceptron_sees_each_cloud_as_one_row(pooled: bool) -> None:
    backbone = FlatMLPBackbone(3, 2, 1, 2, width=8, pooled=pooled).double()
    x, h, ptr = normal(6, 2), normal(6, 1), torch.tensor([0, 3, 6])
    found = backbone(x, ptr, h)
    rows = torch.stack(
        [torch.cat([x[:3], h[:3]], 1).flatten(), torch.cat([x[3:], h[3:]], 1).flatten()]
    )
    expected = backbone.network(rows)
    torch.testing.assert_close(found, expected if pooled else expected.reshape(6, 2))
    moved = backbone(x[[1, 0, 2, 3, 4, 5]], ptr, h[[1, 0, 2, 3, 4, 5]])
    other = moved if pooled else moved[[1, 0, 2, 3, 4, 5]]
    assert (other - found).abs().max() > 1e-3  # it does see the order
    assert torch.autograd.gradgradcheck(lambda x: backbone(x, ptr, h), (x.requires_grad_(),))
    assert backbone(x[:0], torch.tensor([0]), h[:0]).shape == (0, 2)


# Errors.


@pytest.mark.parametrize("lengths", [[3, 4], [3, 0], [2]], ids=str)
def test_the_flat_perceptron_refuses_clouds_of_another_size(lengths: list[int]) -> None:
    ptr = Segments.of_lengths(torch.tensor(lengths))
    with pytest.raises(
        ShapeError, match=rf"cloud {len(lengths) - 1} has {lengths[-1]} points, expected 3"
    ):
        FlatMLPBackbone(3, 2, 0, 2)(torch.zeros(ptr.rows, 2), ptr)


@every_backbone
def test_inputs_that_do_not_fit_are_errors(make: Callable) -> None:
    backbone = make(3, 2, 1)
    x, h = torch.zeros(8, 3), torch.zeros(8, 2)
    with pytest.raises(ShapeError, match=r"x has shape \(8, 2\), expected \(8, 3\)"):
        backbone(x[:, :2], PTR, h)
    with pytest.raises(ShapeError, match=r"x has shape \(7, 3\), expected \(8, 3\)"):
        backbone(x[:7], PTR, h)
    with pytest.raises(ShapeError, match=r"h has shape \(8, 1\), expected \(8, 2\)"):
        backbone(x, PTR, h[:, :1])
    with pytest.raises(ShapeError, match=r"h has shape None, expected \(8, 2\)"):
        backbone(x, PTR)
    with pytest.raises(ShapeError, match=r"h has shape \(8, 2\), expected None"):
        make(3, 0, 1)(x, PTR, h)
    with pytest.raises(ShapeError, match="ptr"):
        backbone(x, PTR.int(), h)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TransformerBackbone, {"dimension": 0}, "TransformerBackbone: found dimension=0"),
        (TransformerBackbone, {"features": -1}, "features=-1"),
        (TransformerBackbone, {"outputs": 0}, "outputs=0"),
        (TransformerBackbone, {"layers": 0}, "layers=0"),
        (TransformerBackbone, {"heads": 0}, "heads=0"),
        (TransformerBackbone, {"frequencies": -1}, "frequencies=-1"),
        (TransformerBackbone, {"width": 10, "heads": 4}, "multiple of heads"),
        (PointNetBackbone, {"pool": "sum"}, "found pool='sum'"),
        (PointNetBackbone, {"width": 0}, "width=0"),
        (PointNetBackbone, {"width": 2.5, "layers": "a"}, "width=2.5, layers='a'"),
        (DGCNNBackbone, {"neighbours": 0}, "neighbours=0"),
        (FlatMLPBackbone, {"points": 0}, "points=0"),
    ],
)
def test_an_option_out_of_range_is_an_error(kind: type, options: dict, message: str) -> None:
    points = {"points": 3} if kind is FlatMLPBackbone else {}
    with pytest.raises(UsageError, match=message):
        kind(**{"dimension": 3, "features": 0, "outputs": 1, **points, **options})
