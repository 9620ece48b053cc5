"""The velocity of a flow as a function of clouds: a vector, on every cloud, of any kind of flow."""

from pathlib import Path

import pytest
import tiny
import torch
from example_flows import FunctionField, element_flow, enlarged_field, flow_of
from tolerances import TOLERANCE

from eqflow.errors import CheckpointError, UnknownElement, UsageError
from eqflow.evaluate.symmetry import CloudVelocity
from eqflow.flows import Solver
from eqflow.flows.atom_types import AtomTypes
from eqflow.flows.compositions import Compositions
from eqflow.geometry import Segments, centred
from eqflow.testing import clouds, symmetry_report

FLOAT64 = [torch.float64]


def test_the_velocity_of_a_good_flow_is_a_vector_on_every_cloud() -> None:
    velocity = CloudVelocity(flow_of(enlarged_field(gain=50.0), 3, 1.3, (2, 3)))
    report = symmetry_report(velocity, "E(3)×S(n)")
    assert report.holds, str(report)
    assert {row.cloud.split("[")[0] for row in report.rows} == set(dict(clouds()))
    assert {row.tolerance for row in report.rows} == set(TOLERANCE.values())


def test_a_flow_of_few_elements_has_clouds_of_them() -> None:
    flow = element_flow(Solver("rk4", steps=2))
    flow.compositions = Compositions((1, 6), torch.tensor([[2, 1]]), torch.tensor([1]))
    velocity = CloudVelocity(flow)
    named = dict(clouds())
    for name, batch in CloudVelocity(element_flow(Solver())).symmetry_clouds():
        assert torch.equal(batch.numbers, named[name].numbers), name
    flow.elements = (1, 6)
    for name, batch in velocity.symmetry_clouds():
        assert set(batch.numbers.tolist()) <= {1, 6}
        assert torch.equal(batch.x, named[name].x)
    assert dict(velocity.symmetry_clouds())["sf6"].numbers.unique().tolist() == [1, 6]


def test_an_element_it_does_not_know_is_named() -> None:
    flow = element_flow(Solver())
    velocity = CloudVelocity(flow).double()
    water = dict(clouds())["water"]
    with pytest.raises(UnknownElement):
        velocity(water.x, water.ptr, torch.full_like(water.h, 79.0))


def test_a_broken_field_is_found_and_its_worst_cloud_named() -> None:
    """The field turns only clouds of seven points, and there is one batch that has such."""

    def lopsided(t: torch.Tensor, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        seven = segments.expand((segments.lengths == 7).to(x)).unsqueeze(1)
        return centred(x, segments) * (1 - 0.5 * seven * x.new_tensor([1.0, 0.0]))

    flow = flow_of(FunctionField(lopsided), 2, 1.3, (3, 4))
    report = symmetry_report(CloudVelocity(flow), "O(2)", dtypes=FLOAT64)
    assert {row.cloud for row in report.failures} <= {"generic[0]", "far[0]"}
    assert report.worst.cloud in ("generic[0]", "far[0]")


def test_what_has_no_velocity_is_refused() -> None:
    with pytest.raises(UsageError, match="found a Linear"):
        CloudVelocity(torch.nn.Linear(1, 1))


def test_a_run_folder_is_measured_in_one_line(tmp_path: Path) -> None:
    assert tiny.train(tiny.particles(tmp_path / "points.npy"), tmp_path / "run") == 0
    report = symmetry_report(tmp_path / "run", dtypes=FLOAT64)
    assert report.holds, str(report)
    assert report.rows[0].group == "E(2)"
    assert report.name == str(tmp_path / "run")
    with pytest.raises(CheckpointError):
        symmetry_report(tmp_path / "missing")


def test_of_charged_atoms_the_charge_nearest_to_zero_is_taken() -> None:
    from eqflow.evaluate.symmetry import _kinds

    types = AtomTypes((6, 7, 7, 8), (-1, 0, 1, -1))
    batch = dict(clouds())["generic"]
    numbers = torch.tensor([6, 7, 8] * 4)
    from dataclasses import replace

    assert _kinds(types, replace(batch, numbers=numbers))[:3].tolist() == [0, 1, 3]
