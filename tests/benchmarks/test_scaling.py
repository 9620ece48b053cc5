"""What the benchmarks of scaling and layouts count and compare."""

from pathlib import Path

import pytest
import torch
from cpu_roofline import Shape, activations_of, roofline, work_of
from layouts import TOLERANCE, Pairs, dense_velocity
from scaling import SWEEPS, WORKS, Both
from scaling_figure import draw
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

# Two points on a line, one feature: two edges.
TINY = Shape(clouds=1, points=2, width=1, layers=1, dimension=1)
CEILINGS = {"copy": 1e9, "fp32": 1e9, "silu": 1e9, "slope": 5e8}


def test_the_count_of_two_points_is_that_by_hand() -> None:
    # Two layers at two edges, two products at two nodes, a multiplication and an addition each.
    assert work_of(TINY, "forward").operations == 2 * (2 * 2 + 2 * 2)
    assert work_of(TINY, "forward + backward").operations == 3 * 16
    assert work_of(TINY, "value + one probe").operations == 2 * 16
    # Of a node x, shift, p, q, the message sum; of an edge a scalar and two indices; and in and
    # out of both products at nodes.
    assert work_of(TINY, "forward").bytes == 4 * (2 * 5 + 2 * 3 + 2 * 2 * 2)


def test_the_exact_trace_of_one_layer_is_six_products_an_edge() -> None:
    assert work_of(TINY, "exact trace").operations == 2 * 6 * 2
    # Three layers: 15 + 5 products at an edge; in the middle one a 2 × 2 matrix and five products
    # at two nodes, for two directions.
    three = TINY._replace(layers=3)
    assert work_of(three, "exact trace").operations == 2 * (20 * 2 + 2 * (2 * 2 + 5 * 2))


def test_activations_are_three_a_feature_of_an_edge() -> None:
    assert activations_of(TINY, "forward") == (6, 0)
    assert activations_of(TINY._replace(layers=2), "forward + backward") == (12, 12)


def test_a_fraction_is_of_the_floor_with_and_without_activations() -> None:
    found = roofline(TINY, "forward + backward", 2 * 288e-9, CEILINGS)
    assert found["bound"] == "copy"
    assert found["floor_seconds"] == pytest.approx(288e-9)
    assert found["fraction"] == pytest.approx(0.5)
    assert found["floor_with_activations_seconds"] == pytest.approx(288e-9 + 6e-9 + 12e-9)


def test_counted_products_are_those_torch_counts_but_for_narrow_ones() -> None:
    n, width, layers = 8, 64, 2
    field = EGNNField(width=width, layers=layers)
    clouds = Segments.of_lengths(torch.full((3,), n))
    x, t = torch.randn(3 * n, 3), torch.tensor(0.3)
    with FlopCounterMode(display=False) as counter:
        dense_velocity(field, t, x, Pairs.of(clouds))
    # The dense layout has a pair of each point with itself, which is no edge.
    shape = Shape(3, n, width, layers)
    edges = 4 * width**2 * layers * shape.edges
    counted = work_of(shape, "forward").operations + edges / (n - 1)
    assert 1 <= counter.get_total_flops() / counted < 1.1


def test_the_dense_layout_is_the_same_function_of_ragged_clouds() -> None:
    field, t = EGNNField(width=16, layers=2), torch.tensor(0.3)
    for layer in field.egnn.layers:
        layer.coordinate_out.weight.data *= 300
    clouds = Segments.of_lengths(torch.tensor([1, 5, 2]))
    x = centred(torch.randn(8, 3), clouds)
    expected = field(t, x, field.connect(x, clouds))
    found = dense_velocity(field, t, x, Pairs.of(clouds))
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
    weights = list(field.parameters())
    assert_close(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
    )


def test_both_fields_give_the_same_by_every_kind_of_work() -> None:
    both = Both(Shape(clouds=2, points=4, width=8, layers=3))
    assert both.compare() < 1e-4
    assert_close(both.eqflow["forward"](), both.port["forward"]())
    exact = (cases["exact trace"]() for cases in (both.eqflow, both.port))
    assert_close(*exact, rtol=1e-4, atol=1e-4)


def test_all_sweeps_are_drawn(tmp_path: Path) -> None:
    def row(shape: Shape) -> dict:
        seconds = {"eqflow": 1.0, "port": 2.0}
        work = {"seconds": seconds, "roofline": {who: {"fraction": 0.1} for who in seconds}}
        return (
            shape._asdict()
            | {"edges": shape.edges, "peak_mebibytes": {"eqflow": 0.5, "port": 4.0}}
            | {"work": dict.fromkeys(WORKS, work)}
        )

    sweeps = {name: [row(shape) for shape in shapes] for name, shapes in SWEEPS.items()}
    # The port's loop over directions is left out where it takes too long.
    sweeps["points"][-1]["work"]["exact trace"] = {
        "seconds": {"eqflow": 1.0},
        "roofline": {"eqflow": {"fraction": 0.1}},
    }
    path = draw({"sweeps": sweeps}, tmp_path / "scaling.png")
    assert path.read_bytes().startswith(b"\x89PNG")
