"""Flow matching: eqflow's couplings and objective against `torchcfm` and `flow_matching`.

Three kinds of work, on batches of 13 points in three dimensions:

- the exact optimal-transport plan of a minibatch, as a permutation by eqflow (assignment) and as a
  plan by torchcfm (network simplex), which then draws pairs from it with replacement. Equal is the
  cost of the plan, not the pairs;
- noise, times, point on the path and loss, with independent coupling, around a field that costs
  next to nothing. eqflow's noise has no centre of mass and its times are stratified. Equal is the
  loss at the same noise and times;
- a training step, forward and backward, with minibatch transport around the same `EGNNField`.

Transport up to rotations and permutations (`EquivariantOT`) is in neither peer, nor is transport
between point clouds of different sizes; flow_matching has no transport plans at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from flow_matching.path import CondOTProbPath
from peers_contest import agreement, contest
from torch import Tensor, nn
from torchcfm import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.optimal_transport import OTPlanSampler

from eqflow import rng
from eqflow.edges import Edges
from eqflow.flows import CenteredNormal, ContinuousFlow, FlowMatching, Independent, MinibatchOT
from eqflow.flows.couplings import reassigned
from eqflow.flows.objectives import Batch, stratified_times
from eqflow.geometry import Segments, centred, degrees_of_freedom
from eqflow.nn import EGNNField
from eqflow.nn.field import AbstractField

POINTS, DIMENSION = 13, 3
BATCHES = (64, 256, 1024)
TRAINED = (64, 256)

PathSample = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Scaling(AbstractField):
    """`v = w x`: a field whose cost does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity."""
        return self.weight * x


def compare(rounds: int) -> list[dict[str, Any]]:
    """All three kinds of work."""
    rows = [_plan(count, rounds) for count in BATCHES]
    rows += [row for count in BATCHES for row in _paths(count, rounds)]
    return rows + [_step(count, rounds) for count in TRAINED]


def _plan(count: int, rounds: int) -> dict[str, Any]:
    x, clouds = _batch(count)
    z = CenteredNormal().sample(clouds, DIMENSION, x, rng.generator(0, "noise"))
    sampler = OTPlanSampler("exact")
    data, noise = x.view(count, -1), z.view(count, -1)

    least = (x - reassigned(x, z, clouds)).square().sum()
    plan = torch.from_numpy(sampler.get_map(noise, data))
    cost = count * (plan * torch.cdist(noise, data).square()).sum()
    same = agreement(f"transport plan, B = {count}", [least.double()], [cost.double()])
    return contest(
        f"LJ13, B = {count}",
        "transport plan",
        "torchcfm",
        lambda: reassigned(x, z, clouds),
        lambda: sampler.sample_plan(noise, data),
        rounds,
        same,
    )


def _paths(count: int, rounds: int) -> Iterator[dict[str, Any]]:
    x, clouds = _batch(count)
    flow, objective = ContinuousFlow(Scaling()), FlowMatching(Independent())
    source = rng.generator(0, "path")

    def mine() -> Tensor:
        return objective(flow, Batch(x, clouds), source).value

    for peer, sample in (("torchcfm", _torchcfm), ("flow_matching", _flow_matching)):

        def theirs(sample: PathSample = sample) -> Tensor:
            noise = torch.randn(count, POINTS * DIMENSION)
            return _loss(flow, clouds, *sample(x.view(count, -1), noise, torch.rand(count)))

        same = _equal_loss(f"{peer}, B = {count}", flow, x, clouds, sample)
        yield contest(f"LJ13, B = {count}", "path and loss", peer, mine, theirs, rounds, same)


def _equal_loss(
    what: str, flow: ContinuousFlow, x: Tensor, clouds: Segments, sample: PathSample
) -> float:
    """Difference of the losses at one draw of noise and times."""
    drawn = FlowMatching(Independent())(flow, Batch(x, clouds), rng.generator(0, "draw")).value
    source = rng.generator(0, "draw")
    z = CenteredNormal().sample(clouds, DIMENSION, x, source)
    t = stratified_times(clouds.count, x, source)
    data, noise = x.view(clouds.count, -1), z.view(clouds.count, -1)
    mean = _loss(flow, clouds, *sample(data, noise, t))
    freedom = degrees_of_freedom(clouds, DIMENSION)[0]
    return agreement(what, [drawn.detach()], [mean.detach() * POINTS * DIMENSION / freedom])


def _step(count: int, rounds: int) -> dict[str, Any]:
    x, clouds = _batch(count)
    with rng.seeded(0, "weights"):
        field = EGNNField(width=32, layers=3)
    flow, objective = ContinuousFlow(field), FlowMatching(MinibatchOT())
    source = rng.generator(0, "step")
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def mine() -> None:
        field.zero_grad(set_to_none=True)
        objective(flow, Batch(x, clouds), source).value.backward()

    def theirs() -> None:
        field.zero_grad(set_to_none=True)
        noise = centred(torch.randn_like(x), clouds).view(count, -1)
        path = matcher.sample_location_and_conditional_flow(x.view(count, -1), noise)
        _loss(flow, clouds, *path).backward()

    # Which pairs torchcfm draws is left to chance, so that one step cannot be compared.
    return contest(f"LJ13, B = {count}", "training step", "torchcfm", mine, theirs, rounds, None)


def _torchcfm(x: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x, z, t)


def _flow_matching(x: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    path = CondOTProbPath().sample(x_0=x, x_1=z, t=t)
    return path.t, path.x_t, path.dx_t


def _loss(flow: ContinuousFlow, clouds: Segments, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """Mean squared error as in the examples of both peers."""
    v = flow.velocity(t, x.view(-1, DIMENSION), clouds)
    return (v.view(u.shape) - u).square().mean()


def _batch(count: int) -> tuple[Tensor, Segments]:
    clouds = Segments.of_lengths(torch.full((count,), POINTS))
    drawn = rng.normal((clouds.rows, DIMENSION), torch.zeros(()), rng.generator(0, "data"))
    return centred(drawn, clouds), clouds
