"""What large batches take in float32, blocks by hand and faster products, is what float64 gives.

Small ones in float64 go other ways, which other tests look at.
"""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import products
from eqflow.edges.reference import by_hand, messages
from eqflow.flows import ContinuousFlow, Exact, Hutchinson
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

SIZES = [30] * 10 + [1, 2, 17]
WITHIN = 2e-4  # of the largest entry, after sums over 9,000 edges and 64 columns in float32


def field(width: int, **options) -> EGNNField:
    with rng.seeded(0, "weights"):
        made = EGNNField(width=width, layers=2, **options)
    for layer in made.egnn.layers:
        layer.coordinate_out.weight.data *= 300  # as after training
    return made


def state(dtype: torch.dtype) -> tuple[Tensor, Segments]:
    clouds = Segments.of_lengths(torch.tensor(SIZES))
    drawn = rng.normal((clouds.rows, 3), torch.zeros(()), rng.generator(0, "state"))
    return centred(drawn.to(dtype), clouds), clouds


def velocity_of(made: EGNNField, x: Tensor, clouds: Segments) -> Callable[[Tensor], Tensor]:
    return ContinuousFlow(made).dynamics(clouds)(torch.tensor(0.3).to(x.dtype), x)


def plain(made: EGNNField) -> EGNNField:
    """The same field in float64, which nothing faster is taken for."""
    wide = EGNNField(**OPTIONS[made.message_width], width=made.message_width, layers=2).double()
    wide.load_state_dict(made.state_dict())
    return wide


OPTIONS = {32: {"attention": False}, 64: {"attention": True}}
every_width = pytest.mark.parametrize("width", OPTIONS)


def assert_near(found: Tensor, expected: Tensor) -> None:
    error = float(((found.double() - expected).abs().max() / expected.abs().max()).detach())
    assert error < WITHIN


def formulas() -> patch:
    """The plain formulas instead of the passes by hand."""
    return patch.object(messages, "SMALL", 10**12)


@every_width
def test_velocity_and_gradients_of_a_large_batch(width: int) -> None:
    made = field(width, **OPTIONS[width])
    found = []
    for one, dtype in ((made, torch.float32), (plain(made), torch.float64)):
        x, clouds = state(dtype)
        x.requires_grad_()
        with patch.object(by_hand, "edge_mlp", wraps=by_hand.edge_mlp) as hand:
            if dtype == torch.float64:
                with formulas():
                    velocity = velocity_of(one, x, clouds)(x)
            else:
                velocity = velocity_of(one, x, clouds)(x)
            assert hand.called == (dtype == torch.float32)
        loss = velocity.square().sum()
        found.append([velocity, *torch.autograd.grad(loss, [x, *one.parameters()])])
    for here, there in zip(*found, strict=True):
        assert_near(here, there)


@every_width
def test_one_probe_and_its_gradients_on_a_large_batch(width: int) -> None:
    made = field(width, **OPTIONS[width])
    found = []
    for one, dtype in ((made, torch.float32), (plain(made), torch.float64)):
        x, clouds = state(dtype)
        probe = Hutchinson().probes(state(torch.float32)[0], clouds, rng.generator(0)).to(dtype)
        with patch.object(by_hand, "dual_edge_mlp", wraps=by_hand.dual_edge_mlp) as hand:
            if dtype == torch.float64:
                with formulas():
                    trace = Hutchinson()(velocity_of(one, x, clouds), x, clouds, probe)
            else:
                trace = Hutchinson()(velocity_of(one, x, clouds), x, clouds, probe)
            assert hand.called == (dtype == torch.float32)
        loss = trace.velocity.square().sum() + trace.estimates.square().sum()
        gradients = torch.autograd.grad(loss, list(one.parameters()))
        found.append([trace.velocity, trace.estimates, *gradients])
    for here, there in zip(*found, strict=True):
        assert_near(here, there)


@every_width
@torch.no_grad()
def test_the_exact_trace_of_a_large_batch(width: int) -> None:
    made = field(width, **OPTIONS[width])
    found = []
    for one, dtype in ((made, torch.float32), (plain(made), torch.float64)):
        x, clouds = state(dtype)
        trace = Exact()(velocity_of(one, x, clouds), x, clouds, x.new_zeros(0))
        found.append((trace.velocity, trace.estimates))
    for here, there in zip(*found, strict=True):
        assert_near(here, there)


@pytest.mark.skipif(not products._HAS_ONEDNN, reason="this processor has no use for oneDNN")
@torch.no_grad()
def test_a_large_batch_takes_the_faster_products() -> None:
    x, clouds = state(torch.float32)
    called = []
    asked = products._is_for_onednn

    def spied(*arguments: object) -> bool:
        called.append(asked(*arguments))
        return called[-1]

    with patch.object(products, "_is_for_onednn", spied):
        velocity_of(field(64, attention=True), x, clouds)(x)
    assert any(called)
