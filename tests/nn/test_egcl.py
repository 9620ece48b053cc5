import pytest
import torch
from per_edge import awake, convolve
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import random_orthogonal, rotate
from eqflow.nn import EGCL

FEATURES = 4
PTR = torch.tensor([0, 4, 5, 5, 8])

OPTIONS = {
    "plain": {"coordinate_update": "mean"},
    "stabilized": {},
    "attention": {"attention": True},
    "inferred edges": {"infer_edges": True},
    "edge attributes": {"edge_features": 2},
    "bounded": {"coordinate_range": 0.3},
    "momentum": {"momentum": True},
    "positions only": {"update_features": False},
    "wide": {"width": 7},
    "everything": {
        "width": 7,
        "coordinate_update": "mean",
        "attention": True,
        "infer_edges": True,
        "edge_features": 2,
        "coordinate_range": 0.3,
        "momentum": True,
    },
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def case(options: dict, dimension: int = 3) -> tuple[EGCL, Edges, dict[str, Tensor]]:
    layer = awake(EGCL(FEATURES, **options))
    edges = Edges.complete(PTR)
    inputs = {
        "x": torch.randn(edges.nodes, dimension, dtype=torch.float64),
        "h": torch.randn(edges.nodes, FEATURES, dtype=torch.float64),
    }
    if layer.edge_features:
        inputs["edge_attributes"] = torch.randn(edges.count, 2, dtype=torch.float64)
    if layer.velocity_scale is not None:
        inputs["velocity"] = torch.randn(edges.nodes, dimension, dtype=torch.float64)
    return layer, edges, inputs


@every_option
@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_a_layer_is_its_formulas(options: dict, dimension: int) -> None:
    layer, edges, inputs = case(options, dimension)
    found = layer(edges=edges, **inputs)
    names = {"edge_attributes": "a"}
    expected = convolve(layer, edges=edges, **{names.get(k, k): v for k, v in inputs.items()})
    assert len(found) == len(expected) == (3 if "velocity" in inputs else 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_mean_divides_by_the_other_points_of_the_cloud() -> None:
    layer, _, inputs = case({"coordinate_update": "mean"})
    with torch.no_grad():
        layer.coordinate_out.weight.zero_()
        layer.coordinate.weight.zero_()
        layer.coordinate.bias.fill_(20.0)  # silu(20) is 20 to the last digits
        layer.coordinate_out.weight.fill_(1 / (20 * FEATURES))
    edges = Edges.complete(torch.tensor([0, 8]))
    x = inputs["x"]
    moved = layer(x, inputs["h"], edges)[0]
    # φ_x = 1: x_i + Σ_j (x_i − x_j) / (n − 1), with Σ_j (x_i − x_j) = n (x_i − mean).
    torch.testing.assert_close(moved, x + 8 / 7 * (x - x.mean(0)), rtol=1e-7, atol=1e-7)


def test_an_envelope_weighs_the_messages_in_both_sums() -> None:
    layer, edges, inputs = case({"attention": True, "infer_edges": True})
    ones = torch.ones(edges.count, dtype=torch.float64)
    for one, other in zip(
        layer(edges=edges, **inputs), layer(edges=edges, **inputs, envelope=ones), strict=True
    ):
        assert torch.equal(one, other)
    # An envelope of zeros and ones leaves edges out.
    keep = torch.arange(edges.count) % 3 != 0
    fewer = Edges.from_index(torch.stack([edges.sender, edges.receiver])[:, keep], edges.nodes)
    weighed = layer(edges=edges, **inputs, envelope=keep.double())
    for one, other in zip(weighed, layer(edges=fewer, **inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@every_option
def test_positions_follow_a_motion_and_features_stay(options: dict) -> None:
    layer, edges, inputs = case(options)
    source = torch.Generator().manual_seed(1)
    R = random_orthogonal(edges.clouds.count, 3, inputs["x"], source)
    shift = edges.clouds.expand(torch.randn(edges.clouds.count, 3, dtype=torch.float64))
    moved = dict(inputs, x=rotate(inputs["x"], R, edges.clouds) + shift)
    if "velocity" in inputs:
        moved["velocity"] = rotate(inputs["velocity"], R, edges.clouds)
    x, h, *velocity = layer(edges=edges, **inputs)
    x_moved, h_moved, *velocity_moved = layer(edges=edges, **moved)
    tolerance = {"rtol": TOLERANCE[x.dtype], "atol": TOLERANCE[x.dtype]}
    torch.testing.assert_close(x_moved, rotate(x, R, edges.clouds) + shift, **tolerance)
    torch.testing.assert_close(h_moved, h, **tolerance)
    for one, other in zip(velocity_moved, velocity, strict=True):
        torch.testing.assert_close(one, rotate(other, R, edges.clouds), **tolerance)


def test_a_new_layer_moves_points_by_almost_nothing() -> None:
    layer = EGCL(16)
    edges = Edges.complete(PTR)
    x = torch.randn(edges.nodes, 3)
    moved = layer(x, torch.randn(edges.nodes, 16), edges)[0]
    assert 0 < float((moved - x).detach().abs().max()) < 1e-2


def test_the_factored_first_layer_starts_as_one_linear_layer_would() -> None:
    layer = EGCL(64, edge_features=3)
    bound = (2 * 64 + 1 + 3) ** -0.5
    for part in (layer.receiver.weight, layer.sender.weight, layer.scalars.weight):
        assert 0.9 * bound < float(part.detach().abs().max()) <= bound


@every_option
def test_every_parameter_has_a_gradient(options: dict) -> None:
    layer, edges, inputs = case(options)
    sum(out.square().sum() for out in layer(edges=edges, **inputs)).backward()
    dead = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_a_layer_without_feature_update_has_no_gate_on_the_feature_sum() -> None:
    layer = EGCL(4, infer_edges=True, update_features=False)
    assert layer.inference is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinate_update": "sum"}, "found 'sum', expected 'stabilized' or 'mean'"),
        ({"coordinate_range": 0.0}, "coordinate_range: found 0.0"),
        ({"width": 0}, "width=0"),
        ({"edge_features": -1}, "edge_features=-1"),
        ({"features": 0}, "features=0"),
    ],
)
def test_an_option_out_of_range_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EGCL(**{"features": 4, **options})


@pytest.mark.parametrize(
    ("options", "wrong", "message"),
    [
        ({}, {"x": torch.zeros(7, 3)}, r"x has shape \(7, 3\), expected \(8, d\)"),
        ({}, {"x": torch.zeros(8)}, r"x has shape \(8,\)"),
        ({}, {"h": torch.zeros(8, 3)}, r"h has shape \(8, 3\), expected \(8, 4\)"),
        ({}, {"edge_attributes": torch.zeros(18, 1)}, r"\(18, 1\), expected None"),
        ({"edge_features": 2}, {"edge_attributes": None}, r"None, expected \(18, 2\)"),
        ({"edge_features": 2}, {"edge_attributes": torch.zeros(18, 1)}, r"expected \(18, 2\)"),
        ({"momentum": True}, {"velocity": torch.zeros(8, 2)}, r"velocity has shape \(8, 2\)"),
        ({}, {"envelope": torch.zeros(18, 1)}, r"envelope has shape \(18, 1\), expected \(18,\)"),
    ],
)
def test_an_input_that_does_not_fit_is_an_error(options: dict, wrong: dict, message: str) -> None:
    layer, edges, inputs = case(options)
    with pytest.raises(ShapeError, match=message):
        layer(edges=edges, **{**inputs, **wrong})


def test_a_velocity_is_taken_with_momentum_and_only_then() -> None:
    layer, edges, inputs = case({})
    with pytest.raises(UsageError, match="found velocity given"):
        layer(edges=edges, **inputs, velocity=inputs["x"])
    layer, edges, inputs = case({"momentum": True})
    with pytest.raises(UsageError, match="found velocity missing"):
        layer(inputs["x"], inputs["h"], edges)
