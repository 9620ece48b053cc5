import itertools
import math

import pytest
import torch
from per_edge import awake, stack
from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.nn import EGNN
from eqflow.testing import assert_equivariant, assert_independent, clouds

PTR = torch.tensor([0, 4, 5, 5, 8])

OPTIONS = {
    "plain": {"coordinate_update": "mean"},
    "stabilized": {},
    "attention": {"attention": True},
    "inferred edges": {"infer_edges": True},
    "edge attributes": {"edge_features": 2},
    "input distance": {"input_distance": True},
    "radial basis": {"input_distance": True, "radial": 5},
    "bounded": {"coordinate_range": 0.6},
    "momentum": {"momentum": True},
    "cutoff": {"cutoff": 2.0},
    "positions only": {"positions_only": True, "infer_edges": True},
    "everything": {
        "attention": True,
        "infer_edges": True,
        "edge_features": 2,
        "input_distance": True,
        "radial": 4,
        "coordinate_range": 0.6,
        "momentum": True,
        "cutoff": 2.0,
    },
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
SHAPES = {
    f"{name}, {dimension}-D": batch
    for dimension in (2, 3)
    for name, batch in clouds(dimension=dimension)
}
every_cloud = pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)


def network(**options) -> EGNN:
    return awake(EGNN(3, width=6, layers=3, **options))


def inputs(egnn: EGNN, edges: Edges, dimension: int = 3) -> dict[str, Tensor]:
    drawn = {
        "x": torch.randn(edges.nodes, dimension, dtype=torch.float64),
        "h": torch.randn(edges.nodes, 3, dtype=torch.float64),
    }
    if egnn.edge_features:
        drawn["edge_attributes"] = torch.randn(edges.count, 2, dtype=torch.float64)
    if egnn.layers[0].velocity_scale is not None:
        drawn["velocity"] = torch.randn(edges.nodes, dimension, dtype=torch.float64)
    return drawn


@every_option
@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_a_network_is_its_formulas(options: dict, dimension: int) -> None:
    egnn, edges = network(**options), Edges.complete(PTR)
    given = inputs(egnn, edges, dimension)
    found = egnn(edges=edges, **given)
    names = {"edge_attributes": "a"}
    expected = stack(egnn, edges=edges, **{names.get(k, k): v for k, v in given.items()})
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_each_layer_with_momentum_starts_from_the_initial_velocity() -> None:
    egnn, edges = network(momentum=True), Edges.complete(PTR)
    for layer in egnn.layers:
        for parameter in (*layer.velocity_scale.parameters(), layer.coordinate_out.weight):
            torch.nn.init.zeros_(parameter)
        layer.velocity_scale[-1].bias.data.fill_(0.5)  # φ_v = ½, no shift
    given = inputs(egnn, edges)
    x, _, velocity = egnn(edges=edges, **given)
    torch.testing.assert_close(velocity, 0.5 * given["velocity"])
    torch.testing.assert_close(x, given["x"] + 1.5 * given["velocity"])


def test_edge_attributes_follow_the_order_of_the_edges() -> None:
    egnn = network(edge_features=2)
    index = torch.tensor([[3, 0, 2, 1, 0], [0, 3, 1, 2, 1]])
    attributes = torch.randn(5, 2, dtype=torch.float64)
    edges = Edges.from_index(index, 4)
    given = inputs(egnn, edges)
    given["edge_attributes"] = attributes[edges.order]
    shuffle = torch.tensor([4, 2, 0, 1, 3])
    other = Edges.from_index(index[:, shuffle], 4)
    again = {**given, "edge_attributes": attributes[shuffle][other.order]}
    for one, two in zip(egnn(edges=edges, **given), egnn(edges=other, **again), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


# Symmetry.

SYMMETRIC = {
    "stabilized": {"attention": True, "infer_edges": True},
    "mean": {"coordinate_update": "mean", "coordinate_range": 3.0},
}


@every_cloud
@pytest.mark.parametrize("options", SYMMETRIC.values(), ids=SYMMETRIC)
def test_positions_move_with_the_cloud_and_features_stay(batch, options: dict) -> None:
    egnn = awake(EGNN(1, width=8, layers=2, **options))

    def run(x: Tensor, ptr: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return egnn(x, h / 10, Edges.complete(ptr))

    for group in (f"E({batch.dimension})", "S(n)"):
        assert_equivariant(lambda *a: run(*a)[0], batch, group=group, output="point")
        assert_equivariant(lambda *a: run(*a)[1], batch, group=group, output="scalar")
    assert_independent(lambda *a: run(*a)[0], batch)
    assert_independent(lambda *a: run(*a)[1], batch)


def test_a_network_with_a_cutoff_is_equivariant_and_independent() -> None:
    egnn = awake(EGNN(1, width=8, layers=2, cutoff=2.0))

    def run(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return egnn(x, h / 10, Edges.radius(x, 2.0, ptr))[0]

    for name in ("generic, 3-D", "pyridine, 3-D", "far, 3-D", "large, 3-D", "generic, 2-D"):
        batch = SHAPES[name]
        assert_equivariant(run, batch, group=f"E({batch.dimension})", output="point")
        assert_equivariant(run, batch, group="S(n)", output="point")
        assert_independent(run, batch)


# Derivatives.


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("options", SYMMETRIC.values(), ids=SYMMETRIC)
@pytest.mark.parametrize("shape", ["one point", "coincident", "collinear", "nobody"])
def test_two_derivatives_are_finite_on_degenerate_clouds(
    shape: str, options: dict, dimension: int
) -> None:
    points = {"one point": [1.0], "coincident": [0.0, 0.0, 1.0], "collinear": [-1.0, 0.0, 1.0]}
    along = torch.tensor(points.get(shape, []), dtype=torch.float64).unsqueeze(1)
    x = (along * torch.ones(dimension, dtype=torch.float64)).requires_grad_()
    edges = Edges.complete(torch.tensor([0, len(x)]))
    egnn = network(**options)
    moved, h = egnn(x, torch.ones(len(x), 3, dtype=torch.float64), edges)
    loss = (moved**3).sum() + h.square().sum()
    first = torch.autograd.grad(loss, x, create_graph=True)[0]
    second = torch.autograd.grad((first**2).sum(), [x, *egnn.parameters()], allow_unused=True)
    assert first.isfinite().all()
    assert all(g.isfinite().all() for g in second if g is not None)


@pytest.mark.parametrize("layers", [1, 3])
@every_option
def test_every_parameter_has_a_gradient(options: dict, layers: int) -> None:
    egnn = awake(EGNN(3, width=6, layers=layers, **options))
    edges = Edges.complete(PTR)
    x, h, *_ = egnn(edges=edges, **inputs(egnn, edges))
    loss = x.square().sum() + (0 if options.get("positions_only") else h.square().sum())
    loss.backward()
    dead = [name for name, p in egnn.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=4)), ids=str)
def test_a_network_of_positions_only_has_no_dead_parameters(flags: tuple) -> None:
    options = dict(
        zip(("attention", "infer_edges", "input_distance", "momentum"), flags, strict=True)
    )
    egnn = awake(EGNN(3, width=6, layers=2, positions_only=True, **options))
    edges = Edges.complete(PTR)
    egnn(edges=edges, **inputs(egnn, edges))[0].square().sum().backward()
    dead = [name for name, p in egnn.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_the_coordinate_range_is_shared_by_the_layers() -> None:
    egnn = EGNN(3, layers=4, coordinate_range=15.0)
    assert [layer.coordinate_range for layer in egnn.layers] == [3.75] * 4


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"width": 0}, "width=0"),
        ({"features": 0}, "features=0"),
        ({"edge_features": -1, "input_distance": True}, "edge_features=-1"),
        ({"radial": 3}, "radial=3 with input_distance=False"),
        ({"radial": 1, "input_distance": True}, "found radial=1"),
        ({"radial": -2, "input_distance": True}, "found radial=-2"),
        ({"cutoff": 0.0}, "cutoff: found 0.0"),
        ({"cutoff": math.inf}, "cutoff: found inf"),
        ({"cutoff": 2.0, "coordinate_update": "mean"}, "jumps at the cutoff"),
        ({"coordinate_update": "plain"}, "found 'plain'"),
        ({"coordinate_range": -1.0}, "coordinate_range: found -1.0"),
        ({"coordinate_range": float("inf")}, "coordinate_range: found inf"),
    ],
)
def test_an_option_out_of_range_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EGNN(**{"features": 3, **options})


@pytest.mark.parametrize(
    ("options", "wrong", "message"),
    [
        ({}, {"h": torch.zeros(8, 2)}, r"EGNN: h has shape \(8, 2\), expected \(8, 3\)"),
        ({"input_distance": True}, {"x": torch.zeros(7, 3)}, r"x has shape \(7, 3\)"),
        ({"input_distance": True}, {"edge_attributes": torch.zeros(18, 1)}, "expected None"),
        (
            {"input_distance": True, "edge_features": 2},
            {"edge_attributes": torch.zeros(18, 3)},
            r"EGNN: edge_attributes has shape \(18, 3\), expected \(18, 2\)",
        ),
        ({"edge_features": 2}, {"edge_attributes": None}, r"None, expected \(18, 2\)"),
    ],
)
def test_an_input_that_does_not_fit_is_an_error(options: dict, wrong: dict, message: str) -> None:
    egnn, edges = network(**options), Edges.complete(PTR)
    with pytest.raises(ShapeError, match=message):
        egnn(edges=edges, **{**inputs(egnn, edges), **wrong})
