from collections.abc import Callable, Iterable
from copy import deepcopy

import pytest
import torch
from generic_backbone import GenericBackbone, OrderedBackbone
from tolerances import TOLERANCE
from torch import Tensor
from torch.autograd import forward_ad

from eqflow.errors import DataError, DegenerateFrame, ShapeError, UsageError
from eqflow.flows.divergence import Exact
from eqflow.flows.exact import ExactForward
from eqflow.geometry import Clouds, Segments, centred
from eqflow.geometry.frames import (
    AbstractFrame,
    OrbitFrame,
    PCAFrame,
    StochasticFrame,
    WeightedFrame,
)
from eqflow.geometry.representations import representation
from eqflow.nn.averaging.frame_average import FrameAverage, chunks
from eqflow.nn.averaging.free_axes import projectors
from eqflow.testing import assert_equivariant, assert_independent, clouds, equivariance_error

# Every parity of every order up to 2, and scalars and pseudoscalars with them.
EVERYTHING = "1x0e+1x0o+1x1o+1x1e+1x2e+1x2o"
EXACT = 1e-12
THINNED = WeightedFrame(threshold=0.9)
SHAPES = dict(clouds())
IN_SPACE = pytest.mark.parametrize("name", SHAPES)
FEW = [name for name in SHAPES if name not in ("c60", "large", "far")]
SLOW = ("c60", "large")
SOME = ("generic", "water", "ammonia", "methane", "co2", "one_point", "coincident")
exact_frames = pytest.mark.parametrize("frame", ["orbit", "weighted"])


def averaged(
    output: str,
    frame: str | AbstractFrame,
    group: str = "E(3)",
    pooled: bool = False,
    columns: int = 2,
    **options,
) -> FrameAverage:
    dimension = int(group[-2])
    outputs = representation(output, dimension).columns or columns
    backbone = GenericBackbone(dimension, outputs, pooled, size=4.0)
    return FrameAverage(backbone, group, frame, output, **options)


def together(shapes: dict[str, Clouds], names: Iterable[str]) -> Clouds:
    """One batch: errors are those of each cloud by itself all the same."""
    return Clouds.join([shapes[name] for name in names])


def frame_for(name: str, frame: str) -> str | AbstractFrame:
    """All poses, or of 200 points the heavy ones."""
    return THINNED if (name, frame) == ("large", "weighted") else frame


def assert_exact(model: FrameAverage, name: str, batch: Clouds, group: str) -> None:
    """To 1e-12, save far off, and where most of what poses say cancels and errors seem large."""
    wide = name == "far" or model.kind.name in ("1x0o", "1x1e", "2x0o+1x3e")
    tolerance = TOLERANCE[torch.float64] if wide else EXACT
    motions = f"{group}×S(n)"
    assert_equivariant(model, batch, motions, model.kind.name, motions=1, tolerance=tolerance)


@exact_frames
@IN_SPACE
def test_averages_of_irreps_are_exact_on_every_cloud(name: str, frame: str) -> None:
    if frame == "weighted" and name in SLOW:
        pytest.skip("thousands of poses: among the slow tests")
    for group in ("E(3)", "SE(3)"):
        model = averaged(EVERYTHING, frame_for(name, frame), group)
        assert_exact(model, name, SHAPES[name], group)


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", SLOW)
def test_weighted_averages_are_exact_on_large_clouds(name: str, pooled: bool) -> None:
    for group in ("E(3)", "SE(3)"):
        model = averaged(EVERYTHING, frame_for(name, "weighted"), group, pooled)
        assert_exact(model, name, SHAPES[name], group)


@exact_frames
@pytest.mark.parametrize("pooled", [False, True], ids=["a row a point", "a row a cloud"])
@pytest.mark.parametrize("output", ["scalar", "1x0o", "vector", "1x1e", "point", "tensor(2)"])
def test_averages_of_every_kind_are_exact(output: str, pooled: bool, frame: str) -> None:
    for group in ("E(3)", "SE(3)"):
        model = averaged(output, frame, group, pooled)
        assert_exact(model, "some", together(SHAPES, SOME), group)


@pytest.mark.slow
@exact_frames
@pytest.mark.parametrize("pooled", [False, True], ids=["a row a point", "a row a cloud"])
@pytest.mark.parametrize(
    "output", ["scalar", "1x0o", "vector", "1x1e", "point", "tensor(2)", "tensor(3)", "2x0o+1x3e"]
)
@IN_SPACE
def test_averages_of_every_kind_are_exact_on_every_cloud(
    name: str, output: str, pooled: bool, frame: str
) -> None:
    for group in ("E(3)", "SE(3)", "O(3)", "SO(3)", "T(3)"):
        model = averaged(output, frame_for(name, frame), group, pooled)
        assert_exact(model, name, SHAPES[name], group)


@exact_frames
@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize(
    ("output", "pooled"),
    [("scalar", True), ("vector", False), ("point", False), ("tensor(2)", True)],
)
def test_averages_are_exact_on_lines_and_in_planes(
    output: str, pooled: bool, dimension: int, frame: str
) -> None:
    shapes = dict(clouds(dimension))
    for family in ("E", "SE", "O", "SO", "T"):
        group = f"{family}({dimension})"
        batch = together(shapes, [name for name in shapes if name not in ("far", "large")])
        assert_exact(averaged(output, frame, group, pooled), "all", batch, group)


@exact_frames
@pytest.mark.parametrize(
    ("output", "pooled"),
    [("scalar", True), ("vector", False), ("point", False), ("tensor(2)", True)],
)
def test_averages_are_exact_in_four_dimensions(output: str, pooled: bool, frame: str) -> None:
    names = ("generic", "water", "square", "methane", "co2", "one_point")
    batch = together(dict(clouds(dimension=4)), names)
    for group in ("E(4)", "SO(4)"):
        assert_exact(averaged(output, frame, group, pooled), "some", batch, group)


@pytest.mark.parametrize("output", ["scalar", "vector"])
def test_a_backbone_that_knows_the_order_of_points_is_averaged_as_well(output: str) -> None:
    columns = representation(output, 3).columns or 2
    for frame in ("orbit", "weighted"):
        model = FrameAverage(OrderedBackbone(3, columns), "E(3)", frame, output)
        batch = together(SHAPES, SOME)
        assert_equivariant(model, batch, "E(3)", output, motions=1, tolerance=EXACT)
    model = FrameAverage(OrderedBackbone(3, columns), "E(3)", "orbit", output)
    assert equivariance_error(model, SHAPES["generic"], "S(n)", output) > 0.01


def test_the_backbones_that_are_averaged_here_have_no_symmetry_of_their_own() -> None:
    for name in ("generic", "methane"):
        backbone = GenericBackbone(3, 3)
        assert equivariance_error(backbone, SHAPES[name], "SO(3)", "vector") > 0.1
        assert equivariance_error(backbone, SHAPES[name], "T(3)", "vector") > 0.1
        assert equivariance_error(backbone, SHAPES[name], "S(n)", "vector") < EXACT


@pytest.mark.parametrize("name", ["generic", "pyridine", "water", "co2", "one_point", "two_points"])
def test_averages_over_principal_axes_are_exact_where_these_are_unique(name: str) -> None:
    for group in ("E(3)", "SE(3)"):
        assert_exact(averaged(EVERYTHING, "pca", group), name, SHAPES[name], group)


@pytest.mark.parametrize("name", ["ammonia", "benzene", "square", "methane", "sf6", "icosahedron"])
def test_averages_over_principal_axes_are_refused_where_there_are_many(name: str) -> None:
    batch = SHAPES[name]
    with pytest.raises(DegenerateFrame, match="cloud 0 has moments"):
        averaged(EVERYTHING, "pca")(batch.x, batch.ptr, batch.h)
    careless = averaged(EVERYTHING, PCAFrame(on_degenerate="warn"))
    with pytest.warns(UserWarning, match="not equivariant"):
        assert equivariance_error(careless, batch, "SO(3)", EVERYTHING, motions=1) > 0.01
    model = averaged(EVERYTHING, PCAFrame(on_degenerate="orbit"))
    assert_exact(model, name, batch, "E(3)")


@pytest.mark.parametrize("frame", ["orbit", THINNED, PCAFrame(on_degenerate="orbit")])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_cloud_has_the_same_average_alone_as_among_others(
    frame: str | AbstractFrame, pooled: bool
) -> None:
    batch = Clouds.join([SHAPES[name] for name in FEW])
    for output in ("vector", "1x2e"):
        assert_independent(averaged(output, frame, "E(3)", pooled), batch, tolerance=EXACT)


@exact_frames
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_calls_of_few_rows_change_nothing(rows: int, frame: str) -> None:
    batch = Clouds.join([SHAPES[name] for name in ("methane", "one_point", "water", "co2")])
    for pooled in (False, True):
        for output in ("point", "scalar"):
            whole = averaged(output, frame, pooled=pooled)
            parts = averaged(output, frame, pooled=pooled, rows=rows)
            expected = whole(batch.x, batch.ptr, batch.h)
            torch.testing.assert_close(
                parts(batch.x, batch.ptr, batch.h), expected, rtol=EXACT, atol=EXACT
            )
            assert len(whole.backbone.rows) == 1 < len(parts.backbone.rows)
            assert sum(parts.backbone.rows) == sum(whole.backbone.rows)
            assert max(parts.backbone.rows) <= max(rows, 5)


def test_chunks_are_as_few_as_fit_and_hold_a_longer_cloud_alone() -> None:
    lengths = torch.tensor([3, 0, 4, 9, 1, 1])
    assert chunks(lengths, 7) == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert chunks(lengths, 1) == [slice(k, k + 1) for k in range(6)]
    assert chunks(lengths[:0], 5) == [slice(0, 0)]


@pytest.mark.parametrize("frame", ["orbit", "weighted"])
@pytest.mark.parametrize("name", FEW)
def test_averages_of_computed_features_are_exact_too(name: str, frame: str) -> None:
    """Features that a layer computed agree for equivalent points up to rounding alone."""
    first = averaged("scalar", "orbit", backbone_permutes=True)
    second = averaged("vector", frame, backbone_permutes=True)

    def stacked(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return second(x, ptr, 10 * first(x, ptr, h)[:, :1])

    assert_equivariant(stacked, SHAPES[name], "E(3)×S(n)", "vector", tolerance=1e-11)


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e38])
@pytest.mark.parametrize("frame", ["orbit", "weighted", "pca", "stochastic"])
def test_poses_do_not_depend_on_the_size_of_a_cloud(frame: str, size: float) -> None:
    batch = dict(clouds(dtype=torch.float32))["water"]
    direction = FrameAverage(lambda x, ptr, h: x / x.abs().max(), frame=frame)
    expected = centred(batch.x, batch.ptr) / batch.x.abs().max()
    found = direction(batch.x * size, batch.ptr)
    scale = found.norm() / expected.norm()
    assert float(scale) > 0.1
    if frame != "stochastic":
        assert torch.allclose(found / found.norm(), expected / expected.norm(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("frame", ["orbit", "weighted", "pca", "stochastic"])
def test_half_precision_works(frame: str, dtype: torch.dtype) -> None:
    batch = SHAPES["water"]
    for group in ("E(3)", "SE(3)"):
        model = FrameAverage(lambda x, ptr, h: x, group, frame)
        found = model(batch.x.to(dtype), batch.ptr)
        assert found.dtype == dtype
        assert torch.allclose(found.double(), centred(batch.x, batch.ptr), atol=0.05)


@pytest.mark.parametrize("frame", ["orbit", "weighted", "pca"])
def test_autocast_is_for_the_backbone_and_not_for_poses(frame: str) -> None:
    batch = dict(clouds(dtype=torch.float32))["water"]
    seen = []

    def backbone(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.sin(x + torch.tensor([0.1, 0.5, 0.9]))

    model = FrameAverage(backbone, "E(3)", frame)
    plain = model(batch.x, batch.ptr, batch.h)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(batch.x, batch.ptr, batch.h)
    assert seen == [False, True]
    assert torch.equal(inside, plain)


def test_a_thin_cloud_far_along_one_axis_is_no_point() -> None:
    x = torch.tensor([[1e5, 0.0, 0.0], [1e5, 0.004, 0.0], [1e5, 0.0, 0.003]])
    model = FrameAverage(lambda x, ptr, h: x)
    found = model(x, torch.tensor([0, 3]))
    assert torch.allclose(found, x - x.mean(0), atol=1e-6)
    assert float(found.abs().max()) > 1e-3


def test_the_frame_of_a_call_may_be_named() -> None:
    batch = SHAPES["water"]
    model = averaged("vector", "orbit")
    found = model(batch.x, batch.ptr, batch.h, frame="pca")
    expected = averaged("vector", "pca")(batch.x, batch.ptr, batch.h)
    assert torch.allclose(found, expected)
    with pytest.raises(UsageError, match="frame: found 3"):
        model(batch.x, batch.ptr, batch.h, frame=3)
    assert "OrbitFrame(tolerance=None)" in repr(model)


@pytest.mark.parametrize("output", ["vector", "point", "tensor(2)", "1x0e+1x2e"])
def test_a_model_is_saved_whole_and_comes_back(output: str, tmp_path) -> None:
    columns = {"tensor(2)": 9, "1x0e+1x2e": 6}.get(output, 3)
    model = FrameAverage(GenericBackbone(3, columns), output=output)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    batch = SHAPES["water"]
    rows = [each(batch.x, batch.ptr, batch.h) for each in (model, again)]
    assert torch.equal(*rows)


def test_rows_of_clouds_are_told_from_rows_of_points_where_some_calls_cannot() -> None:
    """Single points come first, a call each: as many points as clouds, whichever rows they are."""
    x = torch.cat([SHAPES["water"].x[:2], SHAPES["ammonia"].x])
    ptr = torch.tensor([0, 1, 2, 6])
    for pooled, count in ((True, 3), (False, 6)):
        backbone = GenericBackbone(3, 3, pooled)
        whole = FrameAverage(backbone, output="point")
        apart = FrameAverage(backbone, output="point", rows=1)
        assert whole(x, ptr).shape == (count, 3)
        assert torch.allclose(apart(x, ptr), whole(x, ptr), atol=1e-12)


@exact_frames
def test_averages_in_single_precision_are_equivariant_to_its_tolerance(frame: str) -> None:
    shapes = dict(clouds(dtype=torch.float32))
    for names in ([*FEW, "c60"] if frame == "orbit" else FEW, ["far"]):
        batch = together(shapes, names)
        for output in ("1x1o+1x2e", "point"):
            model = averaged(output, frame)
            assert_equivariant(model, batch, "E(3)×S(n)", output, motions=1)
            assert model(batch.x, batch.ptr, batch.h).dtype == torch.float32


@pytest.mark.parametrize("frame", ["orbit", "weighted", "stochastic", "pca"])
def test_clouds_without_points_have_no_rows_and_cost_the_others_nothing(frame: str) -> None:
    x = SHAPES["water"].x
    nothing = x.new_zeros(0, 3)
    for pooled in (False, True):
        if frame == "stochastic":
            model = averaged("vector", StochasticFrame(WeightedFrame(), seed=0), pooled=pooled)
        else:
            model = averaged("vector", frame, pooled=pooled)
        assert model(nothing, torch.tensor([0])).shape == (0, 3)
        assert model(nothing, torch.tensor([0, 0, 0])).shape == (2 if pooled else 0, 3)
        among = model(x, torch.tensor([0, 0, 3, 3]))
        assert among.shape == (3, 3)
        if frame != "stochastic":
            alone = model(x, torch.tensor([0, 3]))
            torch.testing.assert_close(among[1:2] if pooled else among, alone)


@exact_frames
def test_a_vector_of_one_point_and_of_points_that_coincide_is_zero(frame: str) -> None:
    x = torch.full((4, 3), 0.7, dtype=torch.float64)
    ptr = torch.tensor([0, 1, 4])
    for group in ("E(3)", "SE(3)"):
        found = averaged(EVERYTHING, frame, group)(x, ptr)
        scalars = 1 if group == "E(3)" else 2
        assert float(found[:, scalars:].abs().max()) < 1e-14
        assert float(found[:, :scalars].abs().min()) > 1e-3
        point = averaged("point", frame, group)(x, ptr)
        torch.testing.assert_close(point, x, rtol=1e-14, atol=0)


@exact_frames
def test_outputs_of_a_molecule_on_a_line_are_those_that_turning_about_it_leaves(frame: str) -> None:
    batch = SHAPES["co2"]
    vector = averaged("vector", frame)(batch.x, batch.ptr, batch.h)
    assert float(vector[:, 1:].abs().max()) < 1e-15 < 1e-3 < float(vector[1:, 0].abs().min())
    tensor = averaged("tensor(2)", frame)(batch.x, batch.ptr, batch.h).reshape(-1, 3, 3)
    assert float((tensor - torch.diag_embed(tensor.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-15
    torch.testing.assert_close(tensor[:, 1, 1], tensor[:, 2, 2])
    left_handed = averaged("1x0o", frame)(batch.x, batch.ptr, batch.h)
    assert float(left_handed.abs().max()) < 1e-15


def test_a_planar_molecule_has_no_pseudoscalar_and_a_generic_one_has() -> None:
    for frame in ("orbit", "weighted"):
        for name in FEW:
            batch = SHAPES[name]
            value = averaged("1x0o", frame, pooled=True)(batch.x, batch.ptr, batch.h).abs()
            assert (float(value.max()) > 1e-4) == (name in ("generic", "coincident")), name


def test_translations_alone_average_over_nothing() -> None:
    batch = SHAPES["generic"]
    model = averaged("vector", "orbit", "T(3)")
    expected = model.backbone(centred(batch.x, batch.ptr), batch.ptr, batch.h)
    torch.testing.assert_close(model(batch.x, batch.ptr, batch.h), expected)


def test_types_alone_may_break_a_symmetry() -> None:
    x, ptr = SHAPES["square"].x, SHAPES["square"].ptr
    alike, model = averaged("vector", "orbit"), averaged("vector", "orbit")
    segments = Segments(ptr)
    marked = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    assert alike.poses(x, segments).count == 16
    assert alike.poses(x, segments, torch.ones_like(marked)).count == 16
    assert model.poses(x, segments, marked).count == 4
    assert model.poses(x, segments, torch.arange(4.0).unsqueeze(1)).count == 2
    for h in (marked, torch.arange(4).double().unsqueeze(1)):
        batch = Clouds(x, ptr, h.squeeze(1).long())
        assert_exact(model, "square", batch, "E(3)")


# One call for all poses.


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("group", ["E(3)", "SE(3)"])
def test_one_call_of_a_backbone_that_permutes_serves_all_poses(group: str, pooled: bool) -> None:
    batch = Clouds.join([SHAPES[name] for name in [*FEW, "c60"]])
    for output in ("vector", EVERYTHING):
        each = averaged(output, "orbit", group, pooled)
        once = averaged(output, "orbit", group, pooled, backbone_permutes=True)
        expected = each(batch.x, batch.ptr, batch.h)
        found = once(batch.x, batch.ptr, batch.h)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        assert once.backbone.rows == [len(batch.x)]
        assert sum(each.backbone.rows) > 30 * len(batch.x)
    assert_exact(once, "all", batch, group)


def test_one_call_does_not_serve_a_cloud_that_is_only_nearly_symmetric() -> None:
    source = torch.Generator().manual_seed(0)
    batch = dict(clouds(dtype=torch.float32))["methane"]
    noise = torch.randn(batch.x.shape, generator=source)
    x = batch.x + 2e-4 * noise
    once = averaged("vector", "orbit", backbone_permutes=True)
    poses = once.poses(centred(x, batch.ptr), batch.segments, batch.h)
    assert poses.count == 24  # symmetric up to the tolerance of the frame
    found = once(x, batch.ptr, batch.h)
    torch.testing.assert_close(found, averaged("vector", "orbit")(x, batch.ptr, batch.h))
    assert once.backbone.rows == [24 * 5]
    assert_equivariant(once, batch.with_positions(x), "E(3)×S(n)", "vector")


def test_large_clouds_in_single_precision_have_one_pose() -> None:
    # Of one wave, sums over many points are alike to the tolerance of float32 now and then.
    source = torch.Generator().manual_seed(1)
    x = torch.randn(60 * 200, 3, generator=source)
    segments = Segments(torch.arange(61) * 200)
    assert averaged("vector", "orbit").poses(centred(x, segments), segments).count == 60


@pytest.mark.parametrize("name", FEW)
def test_derivatives_are_those_of_all_poses(name: str) -> None:
    batch = SHAPES[name]
    models = [
        averaged("scalar", "orbit", pooled=True, columns=1, backbone_permutes=permutes)
        for permutes in (False, True)
    ]
    x = batch.x.clone().requires_grad_()
    forces = [torch.autograd.grad(m(x, batch.ptr, batch.h).sum(), x)[0] for m in models]
    torch.testing.assert_close(forces[1], forces[0], rtol=0, atol=1e-14)

    tangent = torch.cos(torch.arange(x.numel()).double()).reshape(x.shape)
    expected = batch.segments.sum((forces[0] * tangent).sum(-1))
    for model in models:
        with forward_ad.dual_level(), torch.no_grad():
            dual = forward_ad.make_dual(batch.x, tangent)
            pushed = forward_ad.unpack_dual(model(dual, batch.ptr, batch.h)).tangent
        torch.testing.assert_close(pushed.squeeze(1), expected, rtol=1e-12, atol=1e-13)
        _, pushed = torch.func.jvp(
            lambda x, model=model: model(x, batch.ptr, batch.h), (batch.x,), (tangent,)
        )
        torch.testing.assert_close(pushed.squeeze(1), expected, rtol=1e-12, atol=1e-13)


def energy_gradient(model: FrameAverage):
    def forces(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x, ptr, h).sum(), x)[0]

    return forces


@pytest.mark.parametrize("permutes", [False, True])
@IN_SPACE
def test_forces_of_an_averaged_energy_are_equivariant(name: str, permutes: bool) -> None:
    model = averaged("scalar", "orbit", pooled=True, columns=1, backbone_permutes=permutes)
    tolerance = TOLERANCE[torch.float64] if name == "far" else 1e-11
    assert_equivariant(
        energy_gradient(model), SHAPES[name], "E(3)×S(n)", motions=1, tolerance=tolerance
    )


@pytest.mark.parametrize("name", [*FEW, "large"])
def test_forces_of_a_weighted_energy_are_equivariant(name: str) -> None:
    model = averaged("scalar", frame_for(name, "weighted"), pooled=True, columns=1)
    assert_equivariant(
        energy_gradient(model), SHAPES[name], "E(3)×S(n)", motions=1, tolerance=1e-11
    )


@pytest.mark.parametrize("frame", ["orbit", "weighted", PCAFrame(on_degenerate="orbit")])
@pytest.mark.parametrize("name", FEW)
def test_averages_can_be_differentiated_twice_on_every_cloud(
    name: str, frame: str | AbstractFrame
) -> None:
    batch = SHAPES[name]
    model = averaged("vector", frame)
    x = batch.x.clone().requires_grad_()
    v = torch.sin(torch.arange(x.numel()).double()).reshape(x.shape)
    (pulled,) = torch.autograd.grad((model(x, batch.ptr, batch.h) * v).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad((pulled * v).sum(), x)
    assert pulled.isfinite().all()
    assert twice.isfinite().all()
    if name != "one_point":
        assert float(pulled.detach().abs().max()) > 1e-3
        assert float(twice.abs().max()) > 1e-3


@pytest.mark.parametrize("group", ["E(3)", "SE(3)"])
@pytest.mark.parametrize("frame", ["orbit", "weighted", WeightedFrame(3.0, 0.2), "pca"])
def test_derivatives_are_right(frame: str | AbstractFrame, group: str) -> None:
    batch = SHAPES["generic"][1]
    ptr, h = torch.tensor([0, 4]), batch.h[:4]
    x = batch.x[:4].clone().requires_grad_()
    for output, pooled in (("vector", False), ("1x0o", True), ("tensor(2)", True)):
        model = averaged(output, frame, group, pooled)

        def call(x: Tensor, model: FrameAverage = model) -> Tensor:
            return model(x, ptr, h)

        assert torch.autograd.gradcheck(call, (x,), fast_mode=output != "vector")
        assert torch.autograd.gradgradcheck(call, (x,), fast_mode=True)


def test_parameters_of_a_backbone_have_gradients_whether_one_call_serves_all_or_not() -> None:
    batch = SHAPES["methane"]
    found = []
    for permutes in (False, True):
        model = averaged("vector", "orbit", backbone_permutes=permutes)
        model.backbone.last.requires_grad_()
        model(batch.x, batch.ptr, batch.h).square().sum().backward()
        found.append(model.backbone.last.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frame", ["orbit", "weighted", "pca"])
def test_the_divergence_of_an_averaged_velocity_is_right(frame: str) -> None:
    batch = SHAPES["generic"]
    model = averaged("vector", frame, backbone_permutes=True)
    x = centred(batch.x, batch.ptr)

    def velocity(x: Tensor) -> Tensor:
        return centred(model(x, batch.ptr, batch.h), batch.ptr)

    expected = _divergence_by_differences(velocity, x, batch.segments)
    for grad in (True, False):
        for exact in (Exact(), ExactForward()):
            with torch.set_grad_enabled(grad):
                found = exact(velocity, x, batch.segments, x.new_zeros(0))[1].detach()
            torch.testing.assert_close(found.squeeze(1), expected, rtol=1e-7, atol=1e-7)
    jacobian = torch.func.jacfwd(lambda v: velocity(v.reshape(x.shape)).reshape(-1))(x.reshape(-1))
    traces = batch.segments.sum(jacobian.diagonal().reshape(x.shape).sum(-1))
    torch.testing.assert_close(found.squeeze(1), traces, rtol=1e-11, atol=1e-11)


def test_the_divergence_of_a_weighted_average_is_right_on_symmetric_clouds() -> None:
    # Derivatives are continuous here and have corners: differences have to be of small steps.
    for name in ("methane", "ammonia", "square"):
        batch = SHAPES[name]
        model = averaged("vector", "weighted")
        x = centred(batch.x, batch.ptr)

        def velocity(x: Tensor, model: FrameAverage = model, batch: Clouds = batch) -> Tensor:
            return centred(model(x, batch.ptr, batch.h), batch.ptr)

        found = Exact()(velocity, x, batch.segments, x.new_zeros(0))[1].detach().squeeze(1)
        expected = _divergence_by_differences(velocity, x, batch.segments, step=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def _divergence_by_differences(
    velocity: Callable[[Tensor], Tensor], x: Tensor, segments: Segments, step: float = 1e-3
) -> Tensor:
    """Central differences, of fourth order."""
    diagonal = torch.zeros_like(x)
    with torch.no_grad():
        for row in range(x.shape[0]):
            for axis in range(x.shape[1]):
                unit = torch.zeros_like(x)
                unit[row, axis] = step
                for far, share in ((1, 8 / 12), (2, -1 / 12)):
                    change = velocity(x + far * unit) - velocity(x - far * unit)
                    diagonal[row, axis] += share * change[row, axis] / step
    return segments.sum(diagonal.sum(-1))


def test_what_was_first_called_in_inference_mode_can_be_trained_afterwards() -> None:
    projectors.cache_clear()
    batch = Clouds.join([SHAPES["co2"], SHAPES["methane"]])
    for frame in ("orbit", "weighted", "pca"):
        frame = PCAFrame(on_degenerate="orbit") if frame == "pca" else frame
        model = averaged(EVERYTHING, frame, backbone_permutes=True)
        with torch.inference_mode():
            expected = model(batch.x.clone(), batch.ptr.clone(), batch.h)
        x = batch.x.clone().requires_grad_()
        model.backbone.last.requires_grad_()
        found = model(x, batch.ptr, batch.h)
        found.square().sum().backward()
        torch.testing.assert_close(found.detach(), expected.clone(), rtol=0, atol=1e-13)
        assert x.grad.isfinite().all()


def test_a_module_that_is_averaged_keeps_its_parameters_and_can_be_copied() -> None:
    network = torch.nn.Linear(3, 3)
    backbone = torch.nn.Module()
    backbone.network = network
    backbone.forward = lambda x, ptr, h: network(x)
    model = FrameAverage(backbone, "SE(3)", "weighted", "1x1e")
    assert [name for name, _ in model.named_parameters()] == [
        "backbone.network.weight",
        "backbone.network.bias",
    ]
    batch = SHAPES["generic"]
    x = batch.x.float()
    torch.testing.assert_close(deepcopy(model)(x, batch.ptr), model(x, batch.ptr))
    assert list(model.state_dict()) == ["backbone.network.weight", "backbone.network.bias"]


def test_another_frame_may_serve_one_call() -> None:
    batch = SHAPES["methane"]
    model = averaged("vector", "stochastic")
    exact = model(batch.x, batch.ptr, batch.h, frame=OrbitFrame())
    expected = averaged("vector", "orbit")(batch.x, batch.ptr, batch.h)
    torch.testing.assert_close(exact, expected)
    assert isinstance(model.frame, StochasticFrame)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "E3"}, r"group: found 'E3', expected E\(d\).*Did you mean 'E\(3\)'"),
        ({"group": "E(0)"}, "group: found 'E"),
        ({"group": None}, "group: found None"),
        ({"frame": "orbits"}, "frame: found 'orbits', expected one of 'pca', 'orbit'"),
        ({"frame": ["orbit"]}, r"frame: found \['orbit'\]"),
        ({"frame": OrbitFrame}, "or a frame of eqflow.geometry.frames"),
        ({"output": "vectr"}, "output: found 'vectr'.*Did you mean 'vector'"),
        ({"output": ""}, "output: found ''"),
        ({"group": "E(2)", "output": "1o"}, r"irreps 1x1o are those of O\(3\).*dimension 2"),
        ({"rows": 0}, "rows=0"),
        ({"rows": 1.5}, "rows=1.5"),
        ({"backbone": GenericBackbone}, "as the backbone"),
        ({"backbone": 3}, "found 3 as the backbone"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FrameAverage(**{"backbone": GenericBackbone(3, 3), **options})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 2)}, ShapeError, r"shape \(3, 2\).*expected \(N, 3\)"),
        ({"x": torch.zeros(3)}, ShapeError, r"shape \(3,\)"),
        ({"x": torch.zeros(3, 3).long()}, ShapeError, "torch.int64"),
        (
            {"x": torch.zeros(4, 3)},
            ShapeError,
            "ptr ends at 3, expected the number of positions, 4",
        ),
        ({"ptr": torch.tensor([1, 3])}, ShapeError, "expected to start at 0"),
        ({"h": torch.zeros(4, 1)}, ShapeError, r"features of shape \(4, 1\)"),
        ({"h": torch.zeros(3)}, ShapeError, r"features of shape \(3,\)"),
        ({"h": torch.full((3, 1), torch.nan)}, DataError, "not finite"),
        ({"x": torch.full((3, 3), torch.nan)}, DataError, "of point 0, in cloud 0, is not finite"),
        ({"x": torch.full((3, 3), torch.inf)}, DataError, "not finite"),
    ],
)
def test_clouds_that_do_not_fit_are_refused(change: dict, error: type, message: str) -> None:
    model = averaged("vector", "orbit")
    given = {"x": torch.zeros(3, 3), "ptr": torch.tensor([0, 3]), "h": None, **change}
    with pytest.raises(error, match=message):
        model(**given)
    assert model.backbone.rows == []


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda x, ptr, h: None, UsageError, "returned a NoneType, expected a tensor"),
        (lambda x, ptr, h: x.long(), UsageError, "returned torch.int64"),
        (lambda x, ptr, h: x[:, :2], ShapeError, r"shape \(\d+, 2\).*asks for"),
        (lambda x, ptr, h: x[1:], ShapeError, "points in"),
        (lambda x, ptr, h: x[:, 0], ShapeError, "'vector' asks for"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(returned, error: type, message: str) -> None:
    batch = SHAPES["generic"]
    with pytest.raises(error, match=message):
        FrameAverage(returned, output="vector")(batch.x, batch.ptr, batch.h)
