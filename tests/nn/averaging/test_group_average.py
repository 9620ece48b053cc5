import copy
import math

import pytest
import torch
from generic_backbone import GenericBackbone, OrderedBackbone
from tolerances import TOLERANCE
from torch import Tensor, nn

from eqflow import rng
from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.geometry import Clouds, Segments, centred, random_orthogonal
from eqflow.geometry.representations import representation
from eqflow.nn.averaging import FiniteGroup, GroupAverage, finite_group, matrix_group
from eqflow.testing import Motion, assert_independent, clouds, equivariance_error
from eqflow.testing.equivariance import missed
from eqflow.testing.outputs import evaluate, scale

EXACT = TOLERANCE[torch.float64]
LIKE = torch.zeros((), dtype=torch.float64)


def group_error(fn, batch: Clouds, group: FiniteGroup, output: str, translates: bool) -> float:
    """The relative error of `f(g x) = ρ(g) f(x)` for a few elements, the last among them."""
    still = Motion.identity(batch)
    translation = still.translation
    if translates:
        source = rng.generator(0, "test", "shift")
        translation = 3 * rng.normal(tuple(translation.shape), translation, source)
    kind = representation(output, batch.dimension)
    before = evaluate(fn, batch, kind)
    worst = 0.0
    for g in {0, group.order // 3, group.order // 2, group.order - 1}:
        rotation, order = still.rotation, still.order
        if group.matrices is not None:
            rotation = group.matrices[g].expand(len(batch), -1, -1)
        if group.permutations is not None:
            starts = batch.segments.expand(batch.ptr[:-1])
            order = starts + group.permutations[g][batch.segments.place]
        motion = Motion("element", rotation, translation, order)
        error = missed(fn, before, kind, motion) / scale(fn, before, kind)
        worst = max(worst, float(error.max()))
    return worst


def packed(sizes: list[int], dimension: int, features: int = 0, seed: int = 0):
    segments = Segments.of_lengths(torch.tensor(sizes))
    source = rng.generator(seed, "test", "clouds")
    x = rng.normal((segments.rows, dimension), LIKE, source)
    h = rng.normal((segments.rows, features), LIKE, source) if features else None
    return x, segments.ptr, h


SPATIAL = ["C(3)", "C(4)v", "D(3)", "D(2)d", "D(6)h", "Ci", "Cs", "T", "Td", "Th", "O", "Oh", "I"]


@pytest.mark.parametrize("name", [*SPATIAL, "Ih"])
def test_the_mean_over_a_point_group_is_equivariant_on_every_cloud(name: str) -> None:
    group = finite_group(name, 3)
    backbone = GenericBackbone(3, 3)
    model = GroupAverage(backbone, name, output="vector")
    for shape, batch in clouds():
        assert group_error(model, batch, group, "vector", translates=True) < EXACT, shape
    generic = dict(clouds())["generic"]
    assert group_error(backbone, generic, group, "vector", translates=False) > 0.1


@pytest.mark.parametrize("name", ["C(4)", "C(5)", "D(1)", "D(6)", "Ci"])
def test_the_mean_over_a_planar_group_is_equivariant_on_every_cloud(name: str) -> None:
    group = finite_group(name, 2)
    model = GroupAverage(GenericBackbone(2, 4), group, output="tensor(2)")
    for shape, batch in clouds(2):
        assert group_error(model, batch, group, "tensor(2)", translates=True) < EXACT, shape


OUTPUTS = {
    "scalar": (2, True),
    "vector": (3, True),
    "point": (3, False),
    "tensor(2)": (9, True),
    "tensor(0)": (1, True),
    "2x0e+0o+1o+1e+2e": (14, False),
    "3o": (7, True),
}


@pytest.mark.parametrize("pooled", [False, True], ids=["points", "clouds"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_kind_of_output_moves_as_it_says(output: str, pooled: bool) -> None:
    group = finite_group("Oh", 3)
    columns, _ = OUTPUTS[output]
    model = GroupAverage(GenericBackbone(3, columns, pooled=pooled), group, output=output)
    for shape in ("generic", "water", "sf6", "coincident", "one_point"):
        batch = dict(clouds())[shape]
        assert group_error(model, batch, group, output, translates=True) < EXACT, shape


def test_about_the_origin_the_mean_is_not_equivariant_under_translations() -> None:
    group = finite_group("O", 3)
    model = GroupAverage(GenericBackbone(3, 3), group, output="point", about="origin")
    batch = dict(clouds())["generic"]
    assert group_error(model, batch, group, "point", translates=False) < EXACT
    assert group_error(model, batch, group, "point", translates=True) > 0.01


@pytest.mark.parametrize("output", ["scalar", "vector"])
@pytest.mark.parametrize("pooled", [False, True], ids=["points", "clouds"])
@pytest.mark.parametrize("name", ["S(1)", "S(3)", "A(4)", "Z(5)", "S(5)"])
def test_the_mean_over_permutations_reorders_points(name: str, pooled: bool, output: str) -> None:
    group = finite_group(name, 3)
    x, ptr, _ = packed([group.points] * 3, 3)
    batch = Clouds(x, ptr, torch.arange(1, 1 + len(x)))
    backbone = OrderedBackbone(3, 3, pooled=pooled)
    model = GroupAverage(backbone, name, output=output)
    assert group_error(model, batch, group, "scalar", translates=True) < EXACT
    if group.order > 1:
        assert group_error(backbone, batch, group, "scalar", translates=False) > 1e-3


def test_the_mean_over_all_permutations_is_equivariant_under_random_ones() -> None:
    x, ptr, _ = packed([4, 4], 2)
    model = GroupAverage(OrderedBackbone(2, 2), "S(4)", dimension=2)
    assert equivariance_error(model, Clouds(x, ptr), group="S(n)") < EXACT
    model = GroupAverage(OrderedBackbone(2, 2), "Z(4)", dimension=2)
    assert equivariance_error(model, Clouds(x, ptr), group="S(n)") > 1e-5


def test_a_product_of_rotations_and_permutations_is_kept_by_the_mean() -> None:
    group = finite_group("C(3)v", 3) * finite_group("Z(4)", 3)
    x, ptr, _ = packed([4, 4, 4], 3)
    batch = Clouds(x, ptr, torch.tensor([1, 6, 7, 8] * 3))
    model = GroupAverage(OrderedBackbone(3, 3), group)
    assert group_error(model, batch, group, "vector", translates=True) < EXACT


def moments(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
    """A row a point without any symmetry, of positions and all columns of features."""
    clouds = Segments.of(ptr)
    values = torch.cat([x, h], 1)
    powers = torch.arange(1.0, values.shape[1] + 1, dtype=x.dtype)
    context = clouds.expand(clouds.mean(torch.sin(values * powers)))
    place = clouds.place.to(x).unsqueeze(1)
    return torch.tanh(values.roll(1, 1) * powers + context + 0.1 * place)


def by_loop(group: FiniteGroup, x: Tensor, ptr: Tensor, h: Tensor, inputs: str, output: str):
    """The formula, an element and a cloud at a time."""
    into, out = representation(inputs, 3), representation(output, 3)
    inverses = torch.linalg.inv(group.matrices)
    of_inputs = None if into.matrices is None else into.matrices(inverses)
    of_outputs = None if out.matrices is None else out.matrices(group.matrices)
    parts = []
    for first, last in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        own, own_h = x[first:last], h[first:last]
        centre = own.sum(0) / len(own)
        total = torch.zeros(len(own), x.shape[1] + h.shape[1], dtype=x.dtype)
        for g in range(group.order):
            order = torch.arange(len(own))
            if group.permutations is not None:
                order = group.permutations[g]
            moved = (own - centre)[order] @ inverses[g].T
            moved_h = own_h[order]
            if of_inputs is not None:
                moved_h = moved_h @ of_inputs[g].T
            value = moments(moved, torch.tensor([0, len(own)]), moved_h)
            if of_outputs is not None:
                value = value @ of_outputs[g].T
            total[order] += value
        mean = total / group.order
        parts.append(mean + centre if out.translates else mean)
    return torch.cat(parts)


@pytest.mark.parametrize("rows", [20, 65536])
@pytest.mark.parametrize(
    ("inputs", "output"),
    [("scalar", "2x1o"), ("vector", "1x1e+1x1o"), ("1x0e+2x0o", "6x0o"), ("1o", "1x0e+1x2e")],
)
def test_the_mean_is_the_loop_over_elements_however_many_go_into_a_call(
    inputs: str, output: str, rows: int
) -> None:
    group = finite_group("C(3)v", 3) * finite_group("Z(4)", 3)
    x, ptr, h = packed([4, 4], 3, features=3)
    model = GroupAverage(moments, group, output=output, features=inputs, rows=rows)
    expected = by_loop(group, x, ptr, h, inputs, output)
    assert (model(x, ptr, h) - expected).abs().max() < EXACT
    still = moments(centred(x, ptr), ptr, h)
    assert (still - expected).abs().max() > 0.1


def test_rows_bound_a_call_and_all_elements_are_one_where_they_fit() -> None:
    x, ptr, h = packed([3, 4], 3, features=1)
    for rows, expected in (
        (65536, [7 * 24]),
        (20, [14] * 12),
        (35, [35] * 4 + [28]),
        (3, [7] * 24),
    ):
        backbone = GenericBackbone(3, 3)
        GroupAverage(backbone, "O", rows=rows)(x, ptr, h)
        assert backbone.rows == expected


def test_features_that_move_are_turned_into_the_frame_of_each_element() -> None:
    group = finite_group("Oh", 3)
    x, ptr, h = packed([5, 3], 3, features=4)
    kind = representation("1x0o+1x1o", 3)
    model = GroupAverage(moments, group, output="1o+1e+0e", features="1x0o+1x1o")
    out = representation("1o+1e+0e", 3)
    source = rng.generator(1, "test", "shift")
    shift = rng.normal((2, 3), LIKE, source)
    owner = Segments(ptr).ids
    for g in (5, 30, 47):
        matrix = group.matrices[g].expand(2, 3, 3)
        moved_x = representation("point", 3).act(x, matrix, shift, owner)
        moved_h = kind.act(h, matrix, None, owner)
        expected = out.act(model(x, ptr, h), matrix, None, owner)
        assert (model(moved_x, ptr, moved_h) - expected).abs().max() < EXACT
        assert (model(moved_x, ptr, h) - expected).abs().max() > 1e-3


def test_features_that_are_positions_move_with_the_cloud() -> None:
    x, ptr, h = packed([5, 3], 3, features=3)
    model = GroupAverage(moments, "T", output="2x1o", features="point")
    shift = torch.tensor([[5.0, -3.0, 2.0]], dtype=torch.float64)
    assert (model(x + shift, ptr, h + shift) - model(x, ptr, h)).abs().max() < EXACT
    assert (model(x + shift, ptr, h) - model(x, ptr, h)).abs().max() > 1e-3


def test_a_mean_of_a_mean_is_the_mean() -> None:
    x, ptr, h = packed([5, 3], 3, features=1)
    once = GroupAverage(GenericBackbone(3, 3), "Td")
    twice = GroupAverage(once, "Td")
    assert (twice(x, ptr, h) - once(x, ptr, h)).abs().max() < EXACT
    within = GroupAverage(once, "T")
    assert (within(x, ptr, h) - once(x, ptr, h)).abs().max() < EXACT


def test_a_backbone_that_is_equivariant_already_is_left_alone() -> None:
    def attraction(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        return -centred(x, ptr) * x.square().sum(-1, keepdim=True)

    x, ptr, _ = packed([5, 3], 3)
    model = GroupAverage(attraction, "Ih")
    expected = attraction(centred(x, ptr), ptr, None)
    assert (model(x, ptr) - expected).abs().max() < EXACT


def polynomial(degree: int, seed: int = 0):
    """A scalar of each cloud, a generic polynomial of that degree in positions."""
    directions = rng.normal((8, 3), LIKE, rng.generator(seed, "test", "directions"))

    def value(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        powers = (x @ directions.T) ** torch.arange(1, 9).clamp(max=degree)
        return Segments.of(ptr).sum(powers)

    return value


def test_the_icosahedral_mean_of_a_quintic_is_that_over_all_rotations() -> None:
    """Harmonics of degree 1 to 5 have no icosahedral invariant; one of degree 6 has."""
    batch = dict(clouds())["generic"]
    exact = GroupAverage(polynomial(5), "I", output="scalar")
    assert equivariance_error(exact, batch, group="E(3)", output="scalar") < EXACT
    octahedral = GroupAverage(polynomial(3), "O", output="scalar")
    assert equivariance_error(octahedral, batch, group="SE(3)", output="scalar") < EXACT
    for degree, group in ((6, "I"), (4, "O")):
        model = GroupAverage(polynomial(degree), group, output="scalar")
        assert equivariance_error(model, batch, group="SE(3)", output="scalar") > 1e-4


def test_the_mean_of_a_linear_map_is_its_trace() -> None:
    """Schur: what commutes with an irreducible group is a multiple of the identity."""
    matrix = rng.normal((3, 3), LIKE, rng.generator(0, "test"))
    x, ptr, _ = packed([5, 3], 3)
    model = GroupAverage(lambda x, ptr, h: x @ matrix.T, "T")
    expected = torch.trace(matrix) / 3 * centred(x, ptr)
    assert (model(x, ptr) - expected).abs().max() < EXACT


def test_users_matrices_are_a_group_like_any_other() -> None:
    source = rng.generator(0, "test", "axes")
    axes = random_orthogonal(1, 3, LIKE, source, proper=True)[0]
    turned = axes @ finite_group("C(3)v", 3).matrices @ axes.T
    model = GroupAverage(GenericBackbone(3, 3), turned.float())
    batch = dict(clouds())["generic"]
    assert group_error(model, batch, model.group, "vector", translates=True) < EXACT
    assert group_error(model, batch, matrix_group(turned), "vector", True) < 1e-5


@pytest.mark.parametrize("name", ["D(3)", "S(3)"])
def test_the_mean_is_differentiable_twice(name: str) -> None:
    x, ptr, h = packed([3, 3] if name == "S(3)" else [1, 2], 3, features=3)
    model = GroupAverage(moments, name, output="2x1o", features="1o")
    inputs = (x.requires_grad_(), h.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, h: model(x, ptr, h), inputs)
    assert torch.autograd.gradgradcheck(lambda x, h: model(x, ptr, h), inputs)


@pytest.mark.parametrize("shape", ["one_point", "coincident", "co2", "methane", "sf6"])
def test_gradients_are_finite_on_degenerate_clouds(shape: str) -> None:
    batch = dict(clouds())[shape]
    x = batch.x.clone().requires_grad_()
    value = GroupAverage(GenericBackbone(3, 3), "Oh")(x, batch.ptr, batch.h)
    (first,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_forward_mode_gives_the_same_derivative() -> None:
    x, ptr, h = packed([4, 2], 3, features=1)
    model = GroupAverage(GenericBackbone(3, 3), "O")
    direction = rng.normal(tuple(x.shape), x, rng.generator(0, "test", "direction"))
    _, forward = torch.func.jvp(lambda x: model(x, ptr, h), (x,), (direction,))
    step = 1e-5
    ahead, behind = model(x + step * direction, ptr, h), model(x - step * direction, ptr, h)
    assert (forward - (ahead - behind) / (2 * step)).abs().max() < 1e-8


def test_a_cloud_does_not_depend_on_the_others() -> None:
    batch = dict(clouds())["generic"]
    assert_independent(GroupAverage(GenericBackbone(3, 3), "Ih"), batch)
    assert_independent(GroupAverage(GenericBackbone(3, 2, pooled=True), "O", "scalar"), batch)


@pytest.mark.parametrize("pooled", [False, True], ids=["points", "clouds"])
def test_empty_clouds_and_batches_are_carried_through(pooled: bool) -> None:
    x, _, _ = packed([5, 3], 3)
    backbone = GenericBackbone(3, 3, pooled=pooled)
    model = GroupAverage(backbone, "Oh", output="point")
    among = model(x, torch.tensor([0, 0, 5, 5, 8, 8]))
    alone = model(x, torch.tensor([0, 5, 8]))
    assert torch.equal(among if not pooled else among[[1, 3]], alone)
    none = model(x[:0], torch.tensor([0]))
    assert none.shape == (0, 3)
    empty = model(x[:0], torch.tensor([0, 0]))
    assert empty.shape == ((1, 3) if pooled else (0, 3))


def test_a_row_of_one_number_is_a_column() -> None:
    x, ptr, _ = packed([5, 3], 3)
    flat = GroupAverage(lambda x, ptr, h: x[:, 0].square(), "O", output="scalar")
    expected = centred(x, ptr).square().sum(-1, keepdim=True) / 3
    assert (flat(x, ptr) - expected).abs().max() < EXACT


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        return torch.tanh(self.linear(x))


def test_a_model_holds_the_weights_of_its_backbone_and_nothing_else() -> None:
    model = GroupAverage(Weighted(), "Td")
    assert list(model.state_dict()) == ["backbone.linear.weight", "backbone.linear.bias"]
    x, ptr, _ = packed([5, 3], 3)
    before = model(x.float(), ptr)
    assert before.dtype == torch.float32
    after = copy.deepcopy(model).double()(x, ptr)
    assert (before - after).abs().max() < TOLERANCE[torch.float32]
    before.sum().backward()
    assert model.backbone.linear.weight.grad.isfinite().all()
    assert "group='Td' of order 24" in repr(model)


def test_equivariance_in_single_precision_is_that_of_its_rounding() -> None:
    group = finite_group("Ih", 3)
    model = GroupAverage(GenericBackbone(3, 3), group)
    for name, batch in clouds(dtype=torch.float32):
        found = group_error(model, batch, group, "vector", translates=True)
        assert found < TOLERANCE[torch.float32], name


def test_clouds_that_do_not_fit_the_permutations_are_refused() -> None:
    model = GroupAverage(OrderedBackbone(3, 3), "S(4)")
    x, ptr, _ = packed([4, 3], 3)
    with pytest.raises(ShapeError, match="cloud 1 has 3 points, expected 4"):
        model(x, ptr)
    with pytest.raises(ShapeError, match="cloud 1 has 0 points, expected 4"):
        model(x[:4], torch.tensor([0, 4, 4]))


BAD_OUTPUTS = {
    "too few columns": (lambda x, ptr, h: x[:, :2], ShapeError, r"shape \(192, 2\) for 192 points"),
    "too many rows": (lambda x, ptr, h: torch.cat([x, x]), ShapeError, r"\(384, 3\).*'vector'"),
    "three axes": (lambda x, ptr, h: x.unsqueeze(0), ShapeError, r"expected \(192, 3\) or \(48, 3"),
    "a column": (lambda x, ptr, h: x[:, 0], ShapeError, r"shape \(192,\)"),
    "a pair": (lambda x, ptr, h: (x, h), UsageError, "returned a tuple, expected a tensor"),
    "whole numbers": (lambda x, ptr, h: x.long(), UsageError, "torch.int64"),
    "nothing": (lambda x, ptr, h: None, UsageError, "returned a NoneType"),
}


@pytest.mark.parametrize(("backbone", "error", "text"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_a_backbone_whose_output_is_not_as_declared_is_refused(backbone, error, text) -> None:
    x, ptr, _ = packed([5, 3], 3)
    with pytest.raises(error, match=text):
        GroupAverage(backbone, "O")(x, ptr)


def with_nan(values: Tensor, row: int) -> Tensor:
    values = values.clone()
    values[row, -1] = math.nan
    return values


X, PTR, H = packed([5, 3], 3, features=3)
BAD_INPUTS = {
    "two dimensions": (X[:, :2], PTR, H, ShapeError, r"\(8, 2\).*expected \(N, 3\)"),
    "whole numbers": (X.long(), PTR, H, ShapeError, "torch.int64, expected"),
    "a vector": (X[:, 0], PTR, H, ShapeError, r"shape \(8,\)"),
    "another ptr": (X, torch.tensor([0, 5]), H, ShapeError, "ptr ends at 5, expected .* 8"),
    "a falling ptr": (X, torch.tensor([0, 9, 8]), H, ShapeError, "never to fall"),
    "fewer features": (X, PTR, H[:5], ShapeError, r"features of shape \(5, 3\), expected \(8, F\)"),
    "narrow features": (X, PTR, H[:, :2], ShapeError, r"\(8, 2\).*expected shape \(8, 3\)"),
    "no features": (X, PTR, None, ShapeError, "features of none"),
    "whole features": (X, PTR, H.long(), ShapeError, "torch.int64, expected shape"),
    "an array": (X.numpy(), PTR, H, ShapeError, "x of type ndarray, expected tensors"),
    "two arrays": (X.numpy(), PTR.numpy(), H, ShapeError, "x of type ndarray, ptr of type ndarray"),
    "lists": (X, PTR.tolist(), H.tolist(), ShapeError, "ptr of type list, h of type list"),
    "NaN": (with_nan(X, 6), PTR, H, DataError, "nan.*of point 6, in cloud 1, is not finite"),
    "infinite": (X / 0, PTR, H, DataError, "of point 0, in cloud 0, is not finite"),
    "NaN features": (X, PTR, with_nan(H, 2), DataError, "feature row .*of point 2, in cloud 0"),
}


@pytest.mark.parametrize(("x", "ptr", "h", "error", "text"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_clouds_that_cannot_be_moved_are_refused(x, ptr, h, error, text) -> None:
    with pytest.raises(error, match=text):
        GroupAverage(moments, "O", output="2x1o", features="vector")(x, ptr, h)


BAD_OPTIONS = {
    "group": ({"group": "Ohh"}, UsageError, "Did you mean 'Oh'"),
    "no group": ({"group": 4}, UsageError, "found 4"),
    "a continuous group": ({"group": "SO(3)"}, UsageError, "HaarAverage"),
    "no elements": ({"group": FiniteGroup("nothing")}, UsageError, "neither matrices nor"),
    "dimension": ({"group": finite_group("O", 3), "dimension": 2}, ShapeError, "O acts in 3"),
    "planar": ({"group": "Td", "dimension": 2}, ShapeError, "Td acts in 3 dimensions"),
    "open matrices": ({"group": finite_group("C(4)", 2).matrices[:3]}, UsageError, "not among"),
    "output": ({"group": "O", "output": "vektor"}, UsageError, "'vector'"),
    "features": ({"group": "O", "features": "1z"}, UsageError, "1z"),
    "irreps of the plane": ({"group": "C(4)", "dimension": 2, "output": "1o"}, UsageError, "O\\(3"),
    "about": ({"group": "O", "about": "center"}, UsageError, "expected 'centre' or 'origin'"),
    "rows": ({"group": "O", "rows": 0}, UsageError, "GroupAverage: found rows=0, expected whole"),
    "rows in words": ({"group": "O", "rows": "a"}, UsageError, "found rows='a'"),
    "half a row": ({"group": "O", "rows": 2.5}, UsageError, "found rows=2.5"),
    "a dimension in words": (
        {"group": finite_group("S(4)", 3), "dimension": "a"},
        UsageError,
        "found dimension='a'",
    ),
    "no backbone": ({"backbone": None, "group": "O"}, UsageError, "GroupAverage: found None as"),
}


@pytest.mark.parametrize(("options", "error", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_wrong_options_are_refused(options, error, text) -> None:
    with pytest.raises(error, match=text):
        GroupAverage(**{"backbone": GenericBackbone(3, 3), **options})


def test_autocast_is_for_the_backbone_and_not_for_rotations() -> None:
    batch = dict(clouds(dtype=torch.float32))["water"]
    seen = []

    def backbone(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.sin(x + torch.tensor([0.1, 0.5, 0.9]))

    model = GroupAverage(backbone, "I")
    plain = model(batch.x, batch.ptr, batch.h)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(batch.x, batch.ptr, batch.h)
    assert seen == [False, True]
    assert torch.equal(inside, plain)
