"""Couplings keep the law of the noise and shorten the way to it."""

import pytest
import torch
from example_flows import ragged
from torch import Tensor

from eqflow import rng
from eqflow.flows import AbstractCoupling, EquivariantOT, Independent, MinibatchOT
from eqflow.geometry import Segments, centre_of_mass, centred

COUPLINGS = [Independent(), MinibatchOT(), EquivariantOT(), EquivariantOT(iterations=1)]


def structures(sizes: list[int]) -> tuple[Tensor, Segments, Tensor]:
    """Clouds far from round, with types."""
    segments = Segments.of_lengths(torch.tensor(sizes))
    source = torch.Generator().manual_seed(0)
    x = torch.randn(segments.rows, 2, dtype=torch.float64, generator=source)
    x = centred(x * torch.tensor([3.0, 0.5]) + segments.place.unsqueeze(1), segments)
    return x, segments, segments.place % 2


def in_batches(coupling: AbstractCoupling, x: Tensor, size: int) -> Tensor:
    """Noise for equal clouds of `size` points in many batches of 50, shape (B, size, d)."""
    segments = Segments.of_lengths(torch.full((50,), size))
    found = [
        coupling(part, segments, None, rng.generator(0, "test", batch))
        for batch, part in enumerate(x.split(50 * size))
    ]
    return torch.cat(found).reshape(-1, size, x.shape[1])


def cost(x: Tensor, z: Tensor) -> float:
    return float((x - z).square().sum())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_noise_is_centred_and_a_function_of_the_generator(coupling: AbstractCoupling) -> None:
    x, segments, types = structures([5, 3, 5, 1, 3, 2])
    z = coupling(x, segments, types, rng.generator(0, "test"))
    assert z.shape == x.shape
    assert z.dtype is x.dtype
    assert centre_of_mass(z, segments).abs().max() < 1e-12
    assert torch.equal(z, coupling(x, segments, types, rng.generator(0, "test")))
    assert not torch.equal(z, coupling(x, segments, types, rng.generator(1, "test")))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_invariants_of_the_noise_keep_the_law_of_the_base(coupling: AbstractCoupling) -> None:
    """Norms, distances and their products are blind to permutation and rotation."""
    z = in_batches(coupling, structures([4] * 3000)[0], 4)
    squares = z.square().sum((1, 2))
    # χ² with (n − 1) d = 6 degrees of freedom: mean 6, variance 12, third central moment 48.
    assert float(squares.mean()) == pytest.approx(6, abs=4.5 * (12 / 3000) ** 0.5)
    assert float(squares.var()) == pytest.approx(12, rel=0.15)
    third = float((squares - 6).pow(3).mean())
    assert third == pytest.approx(48, rel=0.4)
    distances = torch.cdist(z, z)
    # d²/2 of a pair is χ² with 2 degrees of freedom.
    assert float(distances.square().sum((1, 2)).mean()) == pytest.approx(4 * 12, rel=0.03)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_seen_in_random_orientation_and_order_the_noise_is_normal(
    coupling: AbstractCoupling,
) -> None:
    """Structures come turned and ordered at random: then the noise itself has the base's law."""
    source = torch.Generator().manual_seed(1)
    angle = 2 * torch.pi * torch.rand(4000, dtype=torch.float64, generator=source)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    shape = torch.tensor([[3.0, 0.0], [-1.0, 0.2], [-2.0, -0.2]], dtype=torch.float64)
    order = torch.rand(4000, 3, generator=source).argsort(1)
    x = torch.einsum("bij,bnj->bni", turn, shape[order]).reshape(-1, 2)
    z = in_batches(coupling, x, 3).flatten(1)
    covariance = torch.block_diag(*[torch.eye(2)] * 3).double()
    covariance = covariance - torch.eye(2).double().repeat(3, 3) / 3
    assert z.mean(0).abs().max() < 4.5 / 4000**0.5
    assert (z.T.cov() - covariance).abs().max() < 0.08
    assert float(z.pow(4).mean()) == pytest.approx(3 * (2 / 3) ** 2, rel=0.1)


def test_each_coupling_is_shorter_than_the_one_before() -> None:
    x, segments, types = structures([5, 3] * 40)
    costs = [
        cost(x, coupling(x, segments, types, rng.generator(0, "test")))
        for coupling in (Independent(), MinibatchOT(), EquivariantOT(1), EquivariantOT(4))
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[1] < 0.95 * costs[0]
    assert costs[2] < 0.95 * costs[1]


def test_a_batch_of_noise_is_only_exchanged() -> None:
    x, segments, types = structures([4, 2, 4, 4, 2])
    free = Independent()(x, segments, types, rng.generator(0, "test"))
    moved = MinibatchOT()(x, segments, types, rng.generator(0, "test"))
    for size in (2, 4):
        members = (segments.lengths == size).nonzero().squeeze(1)
        _, rows = segments.select(members)
        before = {tuple(cloud.flatten().tolist()) for cloud in free[rows].split(size)}
        after = {tuple(cloud.flatten().tolist()) for cloud in moved[rows].split(size)}
        assert before == after


def test_only_points_of_one_type_change_places() -> None:
    """Distances within a cloud tell which point is which, wherever the cloud was turned."""
    x, segments, types = structures([5, 3, 4])
    free = Independent()(x, segments, types, rng.generator(0, "test"))
    moved = EquivariantOT()(x, segments, types, rng.generator(0, "test"))
    for start, end in zip(segments.ptr[:-1].tolist(), segments.ptr[1:].tolist(), strict=True):
        before, after, kind = (
            free[start:end].norm(dim=1),
            moved[start:end].norm(dim=1),
            types[start:end],
        )
        came_from = (before.unsqueeze(0) - after.unsqueeze(1)).abs().argmin(1)
        assert torch.allclose(before[came_from], after)
        assert sorted(came_from.tolist()) == list(range(end - start))
        assert torch.equal(kind[came_from], kind)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_smallest_batches_are_coupled(coupling: AbstractCoupling) -> None:
    x, segments = ragged(sizes=(1,))
    assert coupling(x, segments, None, rng.generator(0)).tolist() == [[0, 0, 0]]
    empty = torch.zeros(0, 3, dtype=torch.float64)
    found = coupling(empty, Segments(torch.tensor([0])), None, rng.generator(0))
    assert found.shape == (0, 3)
