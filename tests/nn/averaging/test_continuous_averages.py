"""How averages change with a cloud: smoothly, with a corner, or by a jump."""

import pytest
import torch
from generic_backbone import GenericBackbone
from torch import Tensor

from eqflow.geometry import Clouds, Segments, centred
from eqflow.geometry.frames import (
    AbstractFrame,
    OrbitFrame,
    PCAFrame,
    StochasticFrame,
    WeightedFrame,
)
from eqflow.geometry.representations import representation
from eqflow.nn.averaging.frame_average import FrameAverage
from eqflow.testing import assert_continuous, clouds

SHAPES = {name: batch for name, batch in clouds() if name not in ("c60", "large", "far")}
SYMMETRIC = ("ammonia", "benzene", "square", "methane", "sf6", "icosahedron")
SIZES = (1e-9, 3e-9, 1e-8, 3e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
SPREAD = [name for name in SHAPES if name != "one_point"]


def averaged(
    output: str, frame: str | AbstractFrame, group: str = "E(3)", **options
) -> FrameAverage:
    columns = representation(output, int(group[-2])).columns or 2
    return FrameAverage(GenericBackbone(int(group[-2]), columns), group, frame, output, **options)


def noise(x: Tensor, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=source, dtype=torch.float64)


def changes(model: FrameAverage, batch: Clouds, seed: int = 0) -> Tensor:
    """Largest change of an output as the cloud is moved by each of `SIZES` along one direction."""
    still = model(batch.x, batch.ptr, batch.h)
    direction = noise(batch.x, seed)
    moved = [model(batch.x + size * direction, batch.ptr, batch.h) for size in SIZES]
    return torch.stack([(after - still).norm(dim=1).max() for after in moved])


@pytest.mark.parametrize("group", ["E(3)", "SE(3)"])
@pytest.mark.parametrize("output", ["scalar", "vector"])
def test_weighted_averages_change_no_faster_than_their_clouds(output, group) -> None:
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    batch = Clouds.join([SHAPES[name] for name in SPREAD])
    for frame in ("weighted", WeightedFrame(threshold=0.5)):
        for seed in range(2):
            found = changes(averaged(output, frame, group), batch, seed)
            assert (found <= 40 * sizes + 1e-13).all(), found / sizes


@pytest.mark.parametrize("output", ["scalar", "vector", "tensor(2)"])
def test_weighted_averages_of_tensors_are_continuous_off_the_line(output) -> None:
    bent = [name for name in SPREAD if name not in ("co2", "two_points")]
    found = changes(averaged(output, "weighted"), Clouds.join([SHAPES[name] for name in bent]))
    assert (found <= 60 * torch.tensor(SIZES, dtype=torch.float64) + 1e-13).all()


def test_a_weighted_average_of_a_tensor_jumps_where_a_molecule_leaves_its_line() -> None:
    found = changes(averaged("tensor(2)", "weighted"), SHAPES["co2"])
    assert float(found[SIZES.index(1e-6)]) > 1e-2


@pytest.mark.parametrize("name", SYMMETRIC)
def test_orbit_averages_jump_beyond_their_tolerance_and_not_within(name: str) -> None:
    found = changes(averaged("vector", "orbit"), SHAPES[name])
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    within = sizes < 1e-8
    assert (found[within] <= 40 * sizes[within] + 1e-13).all()
    assert float(found[SIZES.index(1e-5)]) > 1e-2


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.filterwarnings("ignore:PCAFrame")
def test_averages_over_principal_axes_jump_however_small_the_change(name: str) -> None:
    careless = averaged("vector", PCAFrame(on_degenerate="warn"))
    assert float(changes(careless, SHAPES[name])[: SIZES.index(1e-5)].min()) > 1e-3


@pytest.mark.parametrize("group", ["E(4)", "SE(4)"])
@pytest.mark.parametrize("output", ["scalar", "vector"])
def test_weighted_averages_are_continuous_in_four_dimensions(output: str, group: str) -> None:
    shapes = dict(clouds(dimension=4))
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    for name in ("generic", "water", "square", "co2", "ammonia"):
        found = changes(averaged(output, "weighted", group), shapes[name])
        assert (found <= 40 * sizes + 1e-13).all(), name


@pytest.mark.parametrize("output", ["scalar", "vector"])
def test_weighted_averages_do_not_jump_where_a_line_is_left_by_as_little_as_is_told(output) -> None:
    # Through the tolerance of the frame, 1.8e-12 of the radius, in steps, with a point near the
    # centre whose axis turns far before those of the others do.
    tolerance = torch.finfo(torch.float64).eps ** 0.75
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0.05, 0, 0], [-0.05, 0, 0]], dtype=torch.float64)
    bend = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1.0, 0], [0, -1.0, 0.5]], dtype=torch.float64)
    model, ptr = averaged(output, "weighted", "O(3)"), torch.tensor([0, 4])
    h = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    still = model(x, ptr, h)
    ranks = set()
    for size in (tolerance * torch.logspace(-2, 3, 81, dtype=torch.float64)).tolist():
        ranks |= set(model.poses(x + size * bend, Segments(ptr), h).rank.tolist())
        assert float((model(x + size * bend, ptr, h) - still).norm(dim=1).max()) < 50 * size + 1e-13
    assert {1, 3} <= ranks


def spread_by(gap: float) -> tuple[Tensor, Tensor]:
    """A generic cloud whose largest moments are 1 and 1 − gap."""
    x = torch.linalg.qr(centred(noise(torch.zeros(6, 3), 3), torch.tensor([0, 6])))[0]
    x = x @ torch.linalg.qr(noise(torch.zeros(3, 3)))[0]
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    moments = torch.tensor([1.0, 1 - gap, 0.4], dtype=torch.float64)
    return 2 * u * moments.sqrt() @ vh, torch.tensor([0, 6])


def gradient_of_pullback(model: FrameAverage, gap: float) -> float:
    """`‖∇_x v^T J(x) v‖`, what training on a divergence is made of."""
    x, ptr = spread_by(gap)
    x.requires_grad_()
    v = centred(noise(x, 5), ptr)
    (pulled,) = torch.autograd.grad((centred(model(x, ptr), ptr) * v).sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad((pulled * v).sum(), x)
    return float(gradient.norm())


def test_a_closing_gap_is_nothing_to_a_weighted_average_and_squared_to_principal_axes() -> None:
    gaps = torch.logspace(-1, -4, 7, dtype=torch.float64)
    principal = averaged("vector", PCAFrame(gap=1e-9))
    weighted = averaged("vector", "weighted")
    orbit = averaged("vector", "orbit")
    found = {
        name: torch.tensor([gradient_of_pullback(model, gap) for gap in gaps.tolist()]).double()
        for name, model in (("pca", principal), ("weighted", weighted), ("orbit", orbit))
    }
    slope = (found["pca"][-1] / found["pca"][2]).log() / (gaps[-1] / gaps[2]).log()
    assert -2.1 < float(slope) < -1.9
    for name in ("weighted", "orbit"):
        assert float(found[name].max()) < 3 * float(found[name].min())
    assert float(found["pca"][-1]) > 1e4 * float(found["weighted"][-1])


@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_of_a_pullback_of_a_weighted_average_is_finite(name: str) -> None:
    batch = SHAPES[name]
    for frame in ("weighted", WeightedFrame(threshold=0.5)):
        for output in ("scalar", "vector", "tensor(2)"):
            x = batch.x.clone().requires_grad_()
            values = averaged(output, frame)(x, batch.ptr, batch.h)
            (pulled,) = torch.autograd.grad((values * noise(values, 1)).sum(), x, create_graph=True)
            (gradient,) = torch.autograd.grad((pulled * noise(x, 2)).sum(), x)
            assert gradient.isfinite().all()
            assert float(gradient.norm()) < 1e3


@pytest.mark.parametrize("name", ["generic", "methane", "square", "co2"])
def test_averages_of_draws_are_those_over_all_poses_in_expectation(name: str) -> None:
    # Copies of one cloud are drawn for independently.
    copies, batch = 1500, SHAPES[name][0]
    many = Clouds.join([batch] * copies)
    for frame in (WeightedFrame(), OrbitFrame(), WeightedFrame(threshold=0.5)):
        for output in ("vector", "1x0e+1x0o+1x2e"):
            whole = averaged(output, frame)(batch.x, batch.ptr, batch.h)
            model = averaged(output, StochasticFrame(frame, draws=2, seed=0))
            drawn = model(many.x, many.ptr, many.h).reshape(copies, *whole.shape)
            error = drawn.std(0) / copies**0.5
            assert ((drawn.mean(0) - whole).abs() <= 5 * error + 1e-12).all()


def test_a_single_draw_is_not_equivariant_and_says_so() -> None:
    model = averaged("vector", "stochastic")
    assert model.frame.in_expectation
    batch = SHAPES["methane"]
    found = [model(batch.x, batch.ptr, batch.h) for _ in range(8)]
    assert len({values.sum().item() for values in found}) > 1


@pytest.mark.parametrize("threshold", [0.0, 0.8])
@pytest.mark.parametrize("name", ["co2", "water", "methane", "benzene"])
def test_the_public_assertion_finds_no_jump_of_weighted_averages(
    name: str, threshold: float
) -> None:
    model = averaged("vector", WeightedFrame(threshold=threshold))
    assert_continuous(model, SHAPES[name], output="vector", draws=3)


def test_the_public_assertion_finds_the_jump_of_orbit_averages() -> None:
    with pytest.raises(AssertionError, match="jump"):
        assert_continuous(averaged("vector", "orbit"), SHAPES["water"], output="vector", draws=3)
