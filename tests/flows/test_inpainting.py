"""Structures around fixed atoms: what is exact about them, and how wrong the rest is."""

import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from example_flows import FunctionField, element_flow, enlarged_field, flow_of
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import EmptyData, UnknownElement, UsageError
from eqflow.flows import (
    ActNorm,
    ContinuousFlow,
    GaussianDequantiser,
    MolecularFlow,
    Sizes,
    Solver,
    Status,
)
from eqflow.flows.inpainting import Fixed, inpaint
from eqflow.geometry import Clouds, Segments, centred, random_orthogonal
from eqflow.nn import AbstractField, CategoricalEGNNField

SIZES = Sizes(torch.tensor([2, 5, 7]), torch.tensor([0.5, 0.3, 0.2]).double().log())
ELEMENTS = (1, 6, 8)


def molecular(dtype: torch.dtype = torch.float32) -> MolecularFlow:
    field = CategoricalEGNNField(3, width=8, layers=2)
    for layer in field.egnn.layers:
        layer.coordinate_out.weight.data.mul_(100)
    flow = ContinuousFlow(field)
    return MolecularFlow(flow, GaussianDequantiser(3), ActNorm(3), SIZES, ELEMENTS).to(dtype)


def fragment(size: int = 3, seed: int = 0) -> Clouds:
    source = torch.Generator().manual_seed(seed)
    x = 5 + torch.randn(size, 3, dtype=torch.float64, generator=source)
    return Clouds(x, torch.tensor([0, size]), torch.tensor(([8, 6, 1] * size)[:size]))


def few(clouds: Clouds, rounds: int = 1) -> Fixed:
    return Fixed(clouds, times=3, rounds=rounds)


@pytest.mark.parametrize("size", [1, 3])
def test_fixed_atoms_come_out_bitwise_as_given_and_first(size: int) -> None:
    given = fragment(size)
    drawn = molecular().draw(4, sizes=[5, 7, 5, size + 1], fixed=few(given))
    assert set(drawn.status) == {Status.SUCCESS}
    assert drawn.clouds.sizes.tolist() == [5, 7, 5, size + 1]
    for cloud in drawn.clouds:
        assert torch.equal(cloud.x[:size], given.x)
        assert torch.equal(cloud.numbers[:size], given.numbers)
    rest = drawn.clouds.x[drawn.clouds.segments.place >= size]
    assert rest.isfinite().all()
    assert len(rest.unique(dim=0)) == len(rest)


def test_all_atoms_fixed_are_returned() -> None:
    given = fragment(5)
    drawn = molecular().draw(2, sizes=5, fixed=few(given)).clouds
    assert torch.equal(drawn.x, given.x.repeat(2, 1))
    assert torch.equal(drawn.numbers, given.numbers.repeat(2))


def test_draws_are_a_function_of_the_seed_and_go_beyond_the_fragment() -> None:
    flow, given = molecular(), fragment()
    one, same, other = (flow.draw(2, seed=s, sizes=5, fixed=few(given)).clouds for s in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)
    assert flow.draw(20, fixed=few(given, 0)).clouds.sizes.min() >= 3  # no molecule of 2


def noises(clouds: Segments, count: int, turn: Tensor) -> Iterator[Tensor]:
    """Draws of the base density, turned."""
    source = torch.Generator().manual_seed(0)
    for _ in range(count):
        z = torch.randn(clouds.rows, 6, dtype=torch.float64, generator=source)
        yield centred(torch.cat([z[:, :3] @ turn.T, z[:, 3:]], 1), clouds, 3)


def test_turning_the_fragment_and_the_noise_turns_the_structures() -> None:
    flow = molecular(torch.float64)
    clouds = Segments.of_lengths(torch.tensor([5, 4]))
    fixed = few(fragment())
    known = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turn = random_orthogonal(1, 3, known, torch.Generator().manual_seed(2))[0]
    found = []
    for q in (torch.eye(3).double(), turn):
        turned = torch.cat([known[:, :3] @ q.T, known[:, 3:]], 1)
        draws, rows = partial(next, noises(clouds, 20, q)), fixed.within(clouds)
        there = inpaint(flow.continuous, turned, rows, clouds, None, draws, fixed)
        found.append(there.x)
    expected = torch.cat([found[0][:, :3] @ turn.T, found[0][:, 3:]], 1)
    torch.testing.assert_close(found[1], expected, rtol=1e-9, atol=1e-9)
    assert float(clouds.mean(found[0])[:, :3].abs().max()) < 1e-12


def test_structures_do_not_depend_on_those_beside_them() -> None:
    flow, fixed = molecular(torch.float64).continuous, few(fragment())
    both = Segments.of_lengths(torch.tensor([5, 4]))
    known = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = list(noises(both, 20, torch.eye(3).double()))
    draws = partial(next, iter(z))
    there = inpaint(flow, known, fixed.within(both), both, None, draws, fixed)
    alone = Segments.of_lengths(torch.tensor([4]))
    draws = partial(next, (each[5:] for each in z))
    last = inpaint(flow, known[3:], fixed.within(alone), alone, None, draws, fixed)
    torch.testing.assert_close(there.x[5:], last.x, rtol=1e-9, atol=1e-9)


def test_a_flow_of_positions_grows_what_the_elements_say() -> None:
    flow = element_flow(Solver("heun", steps=2)).float()
    water = Clouds(torch.eye(3).double()[:2], torch.tensor([0, 2]), torch.tensor([6, 1]))
    drawn = flow.draw(3, numbers=[1, 1, 6], fixed=few(water)).clouds
    assert torch.equal(drawn.numbers, torch.tensor([6, 1, 1]).repeat(3))
    for cloud in drawn:
        assert torch.equal(cloud.x[:2], water.x)
    assert (flow.draw(5, fixed=few(water)).clouds.sizes == 3).all()
    with pytest.raises(UsageError, match="atomic number 6"):
        flow.draw(1, numbers=[1, 1, 8], fixed=few(water))
    with pytest.raises(UsageError, match="no log-likelihood"):
        flow.draw(1, fixed=few(water), with_log_prob=True)


def test_a_flow_without_elements_takes_a_fragment_without_any() -> None:
    flow = flow_of(enlarged_field(), 3, sizes=(2, 4), solver=Solver("heun", steps=2))
    pair = Clouds(torch.eye(3).double()[:2], torch.tensor([0, 2]))
    assert flow.draw(2, sizes=4, fixed=few(pair)).clouds.x.isfinite().all()
    trio = Clouds(torch.eye(3).double(), torch.tensor([0, 3]))
    assert (flow.draw(9, fixed=few(trio)).clouds.sizes == 4).all()
    with pytest.raises(UsageError, match="3 fixed ones"):
        flow.draw(2, sizes=2, fixed=few(trio))


def test_wrong_fragments_are_named() -> None:
    flow, given = molecular(), fragment()
    with pytest.raises(UsageError, match="found 2, expected at least 3"):
        flow.draw(2, sizes=2, fixed=given)
    with pytest.raises(UnknownElement, match="Ne"):
        flow.draw(2, sizes=5, fixed=Clouds(given.x, given.ptr, torch.tensor([10, 1, 1])))
    with pytest.raises(UnknownElement, match="without elements"):
        flow.draw(2, sizes=5, fixed=Clouds(given.x, given.ptr))
    with pytest.raises(UsageError, match="2 dimensions"):
        flow.draw(2, sizes=5, fixed=Clouds(given.x[:, :2].contiguous(), given.ptr, given.numbers))
    with pytest.raises(EmptyData, match="no atoms"):
        Fixed(Clouds(torch.zeros(0, 3), torch.tensor([0, 0])))
    with pytest.raises(UsageError, match="2 structures"):
        Fixed(given[[0, 0]])
    with pytest.raises(UsageError, match="rounds=-1"):
        Fixed(given, rounds=-1)


# Three points on a line, normal on the subspace: coordinates along the first two points' distance
# and the third's from their centre, with covariance C. The field is known, and so is the
# conditional density of the second coordinate given the first.
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
AXES = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
AXES = AXES / AXES.norm(dim=1, keepdim=True)


def normal_velocity(t: Tensor, x: Tensor, clouds: Segments) -> Tensor:
    """`E[z − x₀ | x_t] = (t − (1 − t) C) ((1 − t)² C + t²)⁻¹ x_t`."""
    one = torch.eye(2, dtype=torch.float64)
    slope = (t * one - (1 - t) * COVARIANCE) @ torch.linalg.inv(
        (1 - t) ** 2 * COVARIANCE + t**2 * one
    )
    return (x.reshape(-1, 3) @ AXES.T @ slope.T @ AXES).reshape(-1, 1)


def conditional(rounds: int, times: int, count: int = 4000) -> tuple[float, float]:
    """Mean and variance of the second coordinate where the first is 1; 0.8 and 0.36 by theory."""
    flow = ContinuousFlow(FunctionField(normal_velocity))
    pair = Clouds(AXES[0, :2].unsqueeze(1), torch.tensor([0, 2]))
    fixed = Fixed(pair, times=times, rounds=rounds)
    clouds = Segments.of_lengths(torch.full((count,), 3))
    source = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        z = torch.randn(clouds.rows, 1, dtype=torch.float64, generator=source)
        return centred(z, clouds)

    known, rows = fixed.repeated(count).x, fixed.within(clouds)
    there = inpaint(flow, known, rows, clouds, None, noise, fixed)
    coordinates = there.x.reshape(-1, 3) @ AXES.T
    torch.testing.assert_close(coordinates[:, 0], torch.ones(count, dtype=torch.float64))
    return float(coordinates[:, 1].mean()), float(coordinates[:, 1].var())


def test_rounds_bring_draws_closer_to_the_conditional_density_of_a_normal_one() -> None:
    """Without rounds the mean is 0.3 where it should be 0.8; with 16 it is within 0.1."""
    found = [conditional(rounds, times=10) for rounds in (0, 2, 16)]
    off_mean = [abs(mean - 0.8) for mean, _ in found]
    off_variance = [abs(variance - 0.36) for _, variance in found]
    assert off_mean[0] > 0.4 > off_mean[1] > 0.15 > 0.1 > off_mean[2]
    assert off_variance[0] > 0.2 > off_variance[1] > 0.08 > 0.05 > off_variance[2]


def test_points_that_know_nothing_of_each_other_are_drawn_without_bias() -> None:
    """Where the fixed coordinate says nothing of the other, nothing is approximate."""
    flow = ContinuousFlow(FunctionField(lambda t, x, clouds: (2 * t - 1) / _variance(t) * x))
    count = 4000
    fixed = Fixed(Clouds(AXES[0, :2].unsqueeze(1), torch.tensor([0, 2])), times=20, rounds=0)
    clouds = Segments.of_lengths(torch.full((count,), 3))
    source = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        z = torch.randn(clouds.rows, 1, dtype=torch.float64, generator=source)
        return centred(z, clouds)

    known, rows = fixed.repeated(count).x, fixed.within(clouds)
    there = inpaint(flow, known, rows, clouds, None, noise, fixed)
    second = (there.x.reshape(-1, 3) @ AXES.T)[:, 1]
    assert abs(float(second.mean())) < 4 / math.sqrt(count)
    assert abs(float(second.var()) - 1) < 4 * math.sqrt(2 / count)


def _variance(t: Tensor) -> Tensor:
    return (1 - t) ** 2 + t**2


class Alike(AbstractField):
    """Points of one structure are all of one category, of two: the field is known exactly."""

    state_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.unit = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """That of `CategoricalEGNNField`, whose posterior is here that of all points together."""
        h, variance = x[:, 1:], (1 - t) ** 2 * 0.1**2 + t**2
        rate = (t - (1 - t) * 0.1**2) / variance
        evidence = edges.clouds.expand(edges.clouds.sum((1 - t) / variance * h))
        h = rate * h - (1 + (1 - t) * rate) * evidence.softmax(-1)
        return self.unit * torch.cat([(2 * t - 1) / _variance(t) * x[:, :1], h], 1)


def followers(points: int, rounds: int, count: int = 500) -> float:
    """How many free points have the category of one that is fixed; all would be exact."""
    one = Clouds(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0, 1]))
    fixed = Fixed(one, times=25, rounds=rounds)
    clouds = Segments.of_lengths(torch.full((count,), points))
    source = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        z = torch.randn(clouds.rows, 3, dtype=torch.float64, generator=source)
        return centred(z, clouds, 2)

    known = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).repeat(count, 1)
    rows = fixed.within(clouds)
    free = inpaint(ContinuousFlow(Alike()), known, rows, clouds, None, noise, fixed).x[~rows]
    return float((free[:, 1] > free[:, 2]).double().mean())


def test_categories_follow_those_that_are_fixed_the_more_the_more_rounds() -> None:
    """One fixed point leads one other at once; five free ones outvote it unless asked again."""
    assert 0.9 < followers(2, rounds=0) < 0.97
    assert followers(2, rounds=4) > 0.99
    few, many = followers(6, rounds=0), followers(6, rounds=16)
    assert 0.5 < few < 0.7
    assert many > 0.75
