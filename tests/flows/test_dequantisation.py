"""Labels to features and back: bijections, their determinants, and densities that add up to one."""

import math

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import (
    ArgmaxDequantiser,
    GaussianDequantiser,
    Labels,
    UniformDequantiser,
    VariationalDequantiser,
)
from eqflow.flows.dequantisation import AbstractDequantiser
from eqflow.flows.preimages import (
    from_category,
    from_unit_interval,
    to_category,
    to_unit_interval,
)
from eqflow.geometry import Clouds, Segments
from eqflow.testing import assert_equivariant, assert_independent, clouds

CLOUDS = Segments.of_lengths(torch.tensor([4, 1, 3]))
LABELS = Labels(
    torch.tensor([0, 1, 2, 1, 0, 2, 2, 0]),
    torch.tensor([[6], [1], [-2], [0], [8], [1], [3], [-1]]),
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source)


X = draw(8, 3, seed=5)


def variational(kinds: int = 3, integers: int = 1) -> VariationalDequantiser:
    module = VariationalDequantiser(kinds, integers, width=8, layers=2).double()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * draw(*parameter.shape, seed=seed)
    return module


def every_kind(kinds: int = 3, integers: int = 1) -> list[AbstractDequantiser]:
    made = [
        kind(kinds, integers)
        for kind in (UniformDequantiser, ArgmaxDequantiser, GaussianDequantiser)
    ]
    return [*made, variational(kinds, integers)]


every_dequantiser = pytest.mark.parametrize(
    "dequantiser", every_kind(), ids=lambda each: type(each).__name__
)


# Preimages.


def test_the_category_is_the_largest_component() -> None:
    u, kind = 3 * draw(500, 4), torch.arange(500) % 4
    v, _ = to_category(u, kind)
    assert torch.equal(v.argmax(1), kind)


def test_the_category_comes_back() -> None:
    u, kind = 3 * draw(500, 4), torch.arange(500) % 4
    torch.testing.assert_close(
        from_category(to_category(u, kind)[0], kind), u, rtol=1e-8, atol=1e-8
    )


def test_every_value_of_the_set_is_reached() -> None:
    v = 3 * draw(500, 4)
    kind = v.argmax(1)
    again, _ = to_category(from_category(v, kind), kind)
    torch.testing.assert_close(again, v, rtol=1e-12, atol=1e-12)


def test_an_integer_lies_below_its_value_and_comes_back() -> None:
    u, integer = 3 * draw(300, 2), torch.arange(600).reshape(300, 2) - 300
    v, _ = to_unit_interval(u, integer)
    assert torch.equal(v.floor().long(), integer)
    torch.testing.assert_close(from_unit_interval(v, integer), u, rtol=1e-8, atol=1e-8)


def test_values_outside_a_set_have_no_finite_source() -> None:
    v = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    assert not torch.isfinite(from_category(v, torch.tensor([0]))).all()
    assert not torch.isfinite(from_unit_interval(v, torch.tensor([[1, 0, 0]]))).all()


def test_log_determinants_are_those_of_the_jacobian() -> None:
    u, kind, integer = 2 * draw(6, 4), torch.tensor([0, 1, 2, 3, 1, 0]), torch.arange(24)
    integer = integer.reshape(6, 4)
    _, of_category = to_category(u, kind)
    _, of_integer = to_unit_interval(u, integer)
    for row in range(6):
        here = slice(row, row + 1)
        jacobian = torch.autograd.functional.jacobian(
            lambda y, here=here: to_category(y[None], kind[here])[0][0], u[row]
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], of_category[row])
        jacobian = torch.autograd.functional.jacobian(
            lambda y, here=here: to_unit_interval(y[None], integer[here])[0][0], u[row]
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], of_integer[row].sum())


# Dequantisers.


@every_dequantiser
def test_labels_and_noise_come_back(dequantiser) -> None:
    noise = dequantiser.noise(8, X, rng.generator(0, "noise"))
    v, log_q = dequantiser(LABELS, X, CLOUDS, noise)
    assert v.shape == (8, 4)
    assert log_q.shape == (3,)
    found = dequantiser.labels(v)
    assert torch.equal(found.kind, LABELS.kind)
    assert torch.equal(found.integers, LABELS.integers)
    again = dequantiser.inverse(LABELS, X, CLOUDS, v)
    torch.testing.assert_close(again, noise, rtol=1e-7, atol=1e-7)


@every_dequantiser
def test_the_density_is_that_of_the_noise_less_the_determinant(dequantiser) -> None:
    noise = dequantiser.noise(8, X, rng.generator(1, "noise"))

    def features(flat: Tensor) -> Tensor:
        return dequantiser(LABELS, X, CLOUDS, flat.reshape(8, 4)).v.reshape(-1)

    jacobian = torch.autograd.functional.jacobian(features, noise.reshape(-1)).reshape(32, 8, 4)
    log_density = 0.0
    if not isinstance(dequantiser, UniformDequantiser):
        log_density = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi)
    rows = jacobian.reshape(8, 4, 8, 4).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    log_det = torch.linalg.slogdet(rows)[1]
    log_q = dequantiser(LABELS, X, CLOUDS, noise).log_q
    expected = CLOUDS.sum((log_density + torch.zeros(8, 4).double()).sum(1) - log_det)
    torch.testing.assert_close(log_q, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [0, 1])
def test_the_density_of_a_category_integrates_to_one_over_its_set(kind: int) -> None:
    """By quadrature over the largest component and the logarithm of its lead."""
    dequantiser = variational(2, 0)
    step = 0.05
    top = torch.arange(-12, 12, step, dtype=torch.float64)
    log_lead = torch.arange(-25, 4, step, dtype=torch.float64)
    top, log_lead = (part.reshape(-1) for part in torch.meshgrid(top, log_lead, indexing="ij"))
    other = top - log_lead.exp()
    v = torch.stack((top, other) if kind == 0 else (other, top), 1)
    alone = Segments.of_lengths(torch.ones(len(v), dtype=torch.int64))
    labels = Labels(torch.full((len(v),), kind), torch.zeros(len(v), 0, dtype=torch.int64))
    x = torch.zeros(len(v), 3, dtype=torch.float64)
    with torch.no_grad():
        noise = dequantiser.inverse(labels, x, alone, v)
        log_q = dequantiser(labels, x, alone, noise).log_q
    assert float((log_q + log_lead).exp().sum()) * step**2 == pytest.approx(1, abs=1e-6)


def test_the_density_of_an_integer_integrates_to_one_over_its_interval() -> None:
    dequantiser = variational(1, 1)
    count = 4000
    part = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # The single category is a normal number of its own: one value of it, its density divided out.
    labels = Labels(torch.zeros(count, dtype=torch.int64), torch.full((count, 1), 7))
    alone = Segments.of_lengths(torch.ones(count, dtype=torch.int64))
    x = torch.zeros(count, 3, dtype=torch.float64)
    v = torch.stack([torch.zeros_like(part), 7 + part], 1)
    with torch.no_grad():
        noise = dequantiser.inverse(labels, x, alone, v)
        log_q = dequantiser(labels, x, alone, noise).log_q
        _, log_sigma = dequantiser.moments(labels, x, alone, v)
    of_category = -0.5 * noise[:, 0].square() - 0.5 * math.log(2 * math.pi) - log_sigma[:, 0]
    assert float((log_q - of_category).exp().mean()) == pytest.approx(1, abs=1e-5)


@every_dequantiser
def test_the_average_weight_is_the_probability_of_the_label(dequantiser) -> None:
    """For a normal density of features: `E[p(v) / q(v)]` is what it gives to the label's set."""
    count = 200_000
    if isinstance(dequantiser, GaussianDequantiser):
        # Wide enough to meet the whole set, and those of other labels, which count for nothing.
        dequantiser = GaussianDequantiser(3, 1, spread=1.0)
    labels = Labels(torch.ones(count, dtype=torch.int64), torch.zeros(count, 1, dtype=torch.int64))
    alone = Segments.of_lengths(torch.ones(count, dtype=torch.int64))
    x = torch.zeros(count, 3, dtype=torch.float64)
    with torch.no_grad():
        noise = dequantiser.noise(count, x, rng.generator(2, "weights"))
        v, log_q = dequantiser(labels, x, alone, noise)
    log_p = (-0.5 * v.square() - 0.5 * math.log(2 * math.pi)).sum(1)
    weights = (log_p - log_q).exp()
    # A third of the space is where one of three is largest; the integer is within [0, 1).
    interval = 0.5 * math.erf(1 / math.sqrt(2))
    category = 1 / 3
    if isinstance(dequantiser, UniformDequantiser):
        # The unit cube at (0, 1, 0).
        category = interval**2 * (0.5 * math.erf(2 / math.sqrt(2)) - interval)
    error = float(weights.std()) / count**0.5
    assert abs(float(weights.mean()) - category * interval) < 5 * error


def test_the_moments_do_not_depend_on_where_and_how_a_cloud_stands() -> None:
    dequantiser = variational(20, 0)

    def moments(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        labels = Labels(h[:, 0].long(), torch.zeros(len(h), 0, dtype=torch.int64))
        mean, log_sigma = dequantiser.moments(labels, x, Segments(ptr), x.new_zeros(len(x), 20))
        return torch.cat([mean, log_sigma], 1)

    for name in ("water", "methane", "generic", "benzene"):
        if name not in (shapes := dict(clouds())):
            continue
        batch: Clouds = shapes[name]
        for group in ("E(3)", "S(n)"):
            assert_equivariant(moments, batch, group=group, output="scalar")
        assert_independent(moments, batch)


@every_dequantiser
def test_labels_that_do_not_fit_are_an_error(dequantiser) -> None:
    noise = torch.zeros(8, 4, dtype=torch.float64)
    with pytest.raises(ShapeError, match="found categories 0 to 3"):
        dequantiser(
            Labels(LABELS.kind.clamp(min=0) + LABELS.kind // 2, LABELS.integers), X, CLOUDS, noise
        )
    with pytest.raises(ShapeError, match="for 8 points"):
        dequantiser(LABELS, X, CLOUDS, noise[:, :3])
    with pytest.raises(ShapeError, match="for 8 points"):
        dequantiser(Labels(LABELS.kind, LABELS.integers[:, :0]), X, CLOUDS, noise)


def test_a_dequantiser_of_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="kinds=0"):
        ArgmaxDequantiser(0)
