import math

import pytest
import torch
from generic_backbone import GenericBackbone
from tolerances import TOLERANCE
from torch import Tensor

from eqflow import rng
from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.geometry import Segments, centred
from eqflow.nn.averaging import GroupAverage, HaarAverage
from eqflow.testing import assert_independent, clouds, equivariance_error

EXACT = TOLERANCE[torch.float64]
LIKE = torch.zeros((), dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return rng.normal(shape, LIKE, rng.generator(seed, "test", "haar"))


def packed(dimension: int) -> tuple[Tensor, Tensor]:
    return drawn(6, dimension), torch.tensor([0, 4, 6])


def linear_map(dimension: int) -> Tensor:
    return drawn(dimension, dimension, seed=1) + 0.5 * torch.eye(dimension, dtype=torch.float64)


def in_sigmas(model: HaarAverage, x: Tensor, ptr: Tensor, exact: Tensor) -> Tensor:
    value, error = model.with_error(x, ptr)
    return (value - exact) / error


GROUPS = ["O(2)", "SO(3)", "O(3)", "SO(4)", "O(5)"]


@pytest.mark.parametrize("group", GROUPS)
def test_the_mean_of_a_linear_map_is_its_trace_within_the_standard_error(group: str) -> None:
    d = int(group[-2])
    x, ptr = packed(d)
    matrix = linear_map(d)
    model = HaarAverage(lambda x, ptr, h: x @ matrix.T, group, samples=4000)
    assert in_sigmas(model, x, ptr, torch.trace(matrix) / d * x).abs().max() < 5


def test_rotations_of_the_plane_keep_the_sense_of_a_turn_and_reflections_do_not() -> None:
    """The commutant of SO(2) holds the quarter turn J as well: ⟨A⟩ = (tr A + tr(JᵀA) J) / 2."""
    x, ptr = packed(2)
    matrix = linear_map(2)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    exact = (torch.trace(matrix) * x + torch.trace(quarter.T @ matrix) * x @ quarter.T) / 2
    proper = HaarAverage(lambda x, ptr, h: x @ matrix.T, "SO(2)", samples=4000)
    assert in_sigmas(proper, x, ptr, exact).abs().max() < 5
    every = HaarAverage(lambda x, ptr, h: x @ matrix.T, "O(2)", samples=4000)
    assert in_sigmas(every, x, ptr, exact).abs().max() > 10


@pytest.mark.parametrize("group", ["SO(3)", "O(4)"])
def test_the_mean_of_a_quartic_is_that_over_the_sphere(group: str) -> None:
    d = int(group[-2])
    x, ptr = packed(d)
    axis = drawn(d, seed=2)

    def quartic(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        return (x @ axis).unsqueeze(1) ** torch.tensor([2, 4])

    squares = axis.square().sum() * x.square().sum(1)
    exact = torch.stack([squares / d, 3 * squares.square() / (d * (d + 2))], 1)
    model = HaarAverage(quartic, group, output="scalar", samples=4000)
    assert in_sigmas(model, x, ptr, exact).abs().max() < 5


def test_the_mean_of_a_tensor_is_its_invariant_part() -> None:
    """In three dimensions ⟨R M Rᵀ⟩ = tr M / 3 for a constant M, whatever the cloud."""
    constant = linear_map(3)
    x, ptr = packed(3)
    model = HaarAverage(
        lambda x, ptr, h: constant.flatten().expand(len(x), 9),
        "SO(3)",
        output="tensor(2)",
        samples=4000,
    )
    exact = (torch.trace(constant) / 3 * torch.eye(3, dtype=torch.float64)).flatten()
    assert in_sigmas(model, x, ptr, exact.expand(6, 9)).abs().max() < 5


def test_the_estimate_is_unbiased_and_its_standard_error_is_right() -> None:
    """Over seeds: the errors in sigmas have mean 0 and variance 1, to five standard errors."""
    matrix = linear_map(3)
    x = drawn(1, 3)
    model = HaarAverage(lambda x, ptr, h: x @ matrix.T, "SO(3)", samples=200)
    ptr = torch.tensor([0, 1])
    estimates = [model.with_error(x, ptr, seed=seed) for seed in range(400)]
    values = torch.cat([each.value for each in estimates])
    errors = torch.cat([each.standard_error for each in estimates])
    sigmas = (values - torch.trace(matrix) / 3 * x) / errors
    assert (sigmas.mean(0) * math.sqrt(400)).abs().max() < 5
    assert (sigmas.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 400)
    assert (values.var(0) / errors.square().mean(0) - 1).abs().max() < 5 * math.sqrt(2 / 400)


def test_the_standard_error_falls_as_the_root_of_the_draws() -> None:
    x, ptr = packed(3)
    few, many = (
        HaarAverage(GenericBackbone(3, 3), samples=samples).with_error(x, ptr)[1].mean()
        for samples in (100, 10000)
    )
    assert 9 < few / many < 11


def test_the_mean_and_its_error_are_those_of_the_list_of_draws() -> None:
    x, ptr = packed(3)
    backbone = GenericBackbone(3, 3)
    moved = centred(x, ptr)
    for rows in (6, 100, 65536):
        model = HaarAverage(backbone, "E(3)", samples=50, seed=3, rows=rows)
        terms = torch.stack([backbone(moved @ R, ptr, None) @ R.T for R in model.rotations(3)])
        value, error = model.with_error(x, ptr)
        assert (value - terms.mean(0)).abs().max() < EXACT
        assert (error - terms.std(0) / math.sqrt(50)).abs().max() < EXACT
        assert (model(x, ptr) - value).abs().max() == 0


def test_a_large_mean_costs_the_standard_error_no_digits() -> None:
    x, ptr = packed(3)

    def shifted(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        return x[:, :1] + 1e8

    _, near = HaarAverage(lambda x, ptr, h: x[:, :1], output="scalar", rows=60).with_error(x, ptr)
    _, far = HaarAverage(shifted, output="scalar", rows=60).with_error(x, ptr)
    assert (near - far).abs().max() < 1e-7 * near.max()


def test_draws_are_a_function_of_the_seed_and_of_nothing_else() -> None:
    x, ptr = packed(3)
    model = HaarAverage(GenericBackbone(3, 3), samples=8, seed=5)
    before = torch.random.get_rng_state()
    first = model(x, ptr)
    torch.rand(7)
    assert torch.equal(model(x, ptr), first)
    assert torch.equal(HaarAverage(GenericBackbone(3, 3), samples=8)(x, ptr, seed=5), first)
    assert not torch.allclose(model(x, ptr, seed=6), first)
    torch.random.set_rng_state(before)
    model(x, ptr)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("group", ["SO(3)", "O(3)", "SO(2)", "O(1)"])
def test_draws_are_orthogonal_and_proper_where_they_should_be(group: str) -> None:
    d = int(group[-2])
    model = HaarAverage(GenericBackbone(d, d), group, samples=300)
    found = model.rotations(0)
    assert (found.mT @ found - torch.eye(d, dtype=torch.float64)).abs().max() < 1e-14
    signs = torch.linalg.det(found).round().unique().tolist()
    assert signs == ([1.0] if group.startswith("SO") else [-1.0, 1.0])


def test_the_mean_is_equivariant_in_expectation_only() -> None:
    batch = dict(clouds())["generic"]
    errors = []
    for samples in (100, 10000):
        model = HaarAverage(GenericBackbone(3, 3), "E(3)", samples=samples)
        errors.append(equivariance_error(model, batch, group="E(3)", motions=1))
    assert 1e-4 < errors[1] < errors[0] / 3


@pytest.mark.parametrize("group", ["E(3)", "SE(3)"])
def test_translations_are_exact_about_the_centre_of_mass(group: str) -> None:
    for name, batch in clouds():
        model = HaarAverage(GenericBackbone(3, 3), group, output="point", samples=4)
        assert equivariance_error(model, batch, group="T(3)", output="point") < EXACT, name
    about_origin = HaarAverage(GenericBackbone(3, 3), "O(3)", output="point", samples=4)
    batch = dict(clouds())["generic"]
    assert equivariance_error(about_origin, batch, group="T(3)", output="point") > 1e-3


def test_a_finite_group_within_takes_the_variance_of_low_harmonics_away() -> None:
    x, ptr = packed(3)
    axis = drawn(3, seed=2)

    def quintic(x: Tensor, ptr: Tensor, h: Tensor | None) -> Tensor:
        along = (x @ axis).unsqueeze(1)
        return along + along**2 + along**5

    exact = (axis.square().sum() * x.square().sum(1) / 3).unsqueeze(1)
    inner = GroupAverage(quintic, "I", output="scalar", about="origin")
    strata = HaarAverage(inner, "SO(3)", output="scalar", samples=2)
    value, error = strata.with_error(x, ptr)
    assert (value - exact).abs().max() < EXACT
    assert error.max() < EXACT
    plain = HaarAverage(quintic, "SO(3)", output="scalar", samples=120)
    assert plain.with_error(x, ptr).standard_error.min() > 1e-2


def test_an_inversion_within_takes_away_what_is_odd() -> None:
    x, ptr = packed(3)
    cubic = HaarAverage(
        GroupAverage(lambda x, ptr, h: x[:, :1] ** 3, "Ci", output="scalar", about="origin"),
        "O(3)",
        output="scalar",
    )
    value, error = cubic.with_error(x, ptr)
    assert value.abs().max() < EXACT
    assert error.max() < EXACT


def test_features_that_move_are_turned_with_the_cloud() -> None:
    """The mean of (a·h) b over turns of h alone is (a·b) h / 3."""
    a, b, h = drawn(3, seed=3), drawn(3, seed=4), drawn(6, 3, seed=5)
    x, ptr = packed(3)

    def projected(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return (h @ a).unsqueeze(1) * b

    model = HaarAverage(projected, "SO(3)", features="vector", samples=4000)
    value, error = model.with_error(x, ptr, h)
    assert ((value - a @ b / 3 * h) / error).abs().max() < 5


def test_the_mean_is_differentiable_twice_and_the_error_carries_no_gradient() -> None:
    x, ptr = packed(3)
    model = HaarAverage(GenericBackbone(3, 3), samples=3, rows=12)
    x = x[:4].requires_grad_()
    ptr = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda x: model(x, ptr), (x,))
    assert torch.autograd.gradgradcheck(lambda x: model(x, ptr), (x,))
    value, error = model.with_error(x, ptr)
    assert value.requires_grad
    assert not error.requires_grad


def test_a_cloud_is_drawn_for_alike_alone_and_among_others() -> None:
    batch = dict(clouds())["generic"]
    assert_independent(HaarAverage(GenericBackbone(3, 3), samples=5), batch)
    pooled = HaarAverage(GenericBackbone(3, 2, pooled=True), output="scalar", samples=5)
    assert_independent(pooled, batch)


@pytest.mark.parametrize("pooled", [False, True], ids=["points", "clouds"])
def test_empty_clouds_and_batches_pass_through_draws(pooled: bool) -> None:
    x, _ = packed(3)
    model = HaarAverage(GenericBackbone(3, 3, pooled=pooled), output="point", samples=4)
    among = model(x, torch.tensor([0, 0, 4, 4, 6]))
    alone = model(x, torch.tensor([0, 4, 6]))
    assert torch.equal(among[[1, 3]] if pooled else among, alone)
    value, error = model.with_error(x[:0], torch.tensor([0]))
    assert value.shape == error.shape == (0, 3)


def test_single_precision_draws_are_those_of_double() -> None:
    x, ptr = packed(3)
    model = HaarAverage(GenericBackbone(3, 3), samples=50)
    found = model.with_error(x.float(), ptr)
    expected = model.with_error(x, ptr)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < TOLERANCE[torch.float32]


BAD_OPTIONS = {
    "a finite group": ({"group": "Oh"}, "Did you mean|expected E"),
    "no number": ({"group": "SO(n)"}, "Did you mean"),
    "translations": ({"group": "T(3)"}, "no rotations to draw"),
    "output": ({"output": "vektor"}, "'vector'"),
    "features": ({"group": "O(2)", "features": "1o"}, "O\\(3"),
    "no draws": ({"samples": 0}, "HaarAverage: found samples=0, expected whole numbers"),
    "half a draw": ({"samples": 1.5}, "found samples=1.5"),
    "rows": ({"rows": -1}, "found rows=-1"),
    "both": ({"samples": "a", "rows": True}, "found samples='a', rows=True"),
    "no backbone": ({"backbone": None}, "HaarAverage: found None as the backbone"),
}


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_wrong_options_of_draws_are_refused(options, text) -> None:
    with pytest.raises(UsageError, match=text):
        HaarAverage(**{"backbone": GenericBackbone(3, 3), **options})


def test_one_draw_has_no_standard_error() -> None:
    x, ptr = packed(3)
    model = HaarAverage(GenericBackbone(3, 3), samples=1)
    assert model(x, ptr).shape == (6, 3)
    with pytest.raises(UsageError, match="at least 2 for a standard error"):
        model.with_error(x, ptr)


def test_inputs_and_outputs_that_do_not_fit_are_refused() -> None:
    x, ptr = packed(3)
    model = HaarAverage(lambda x, ptr, h: x[:, :2], samples=2)
    with pytest.raises(ShapeError, match=r"HaarAverage: the backbone returned shape \(12, 2\)"):
        model(x, ptr)
    with pytest.raises(ShapeError, match=r"\(6, 2\).*expected \(N, 3\)"):
        model(x[:, :2], ptr)
    with pytest.raises(ShapeError, match="x of type ndarray, expected tensors"):
        model(x.numpy(), ptr)
    with pytest.raises(DataError, match="of point 5, in cloud 1, is not finite"):
        model(torch.cat([x[:5], math.inf * x[5:]]), ptr)
    pooled = HaarAverage(
        lambda x, ptr, h: Segments.of(ptr).mean(x), "SO(3)", samples=2, output="vector"
    )
    assert pooled(x, ptr).shape == (2, 3)
