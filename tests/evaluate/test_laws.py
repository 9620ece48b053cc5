"""Each law holds for a good flow and is missed by one that breaks it."""

import math
from collections.abc import Callable

import pytest
import torch
from example_flows import FunctionField, element_flow, enlarged_field, flow_of
from torch import Tensor

from eqflow.evaluate.laws import Law, flow_laws
from eqflow.flows import Flow, Solver
from eqflow.geometry import Segments, centred

Field = Callable[[Tensor, Tensor, Segments], Tensor]


def measured(flow: Flow) -> dict[str, Law]:
    return {law.name: law for law in flow_laws(flow, structures=3, seed=0)}


def broken(field: Field) -> set[str]:
    """The laws that a flow in two dimensions with this field misses, by their first words."""
    laws = measured(flow_of(FunctionField(field), 2, 1.3, (3, 4)))
    return {name for name, law in laws.items() if not law.holds}


def attraction(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    """A good field: `−y / (1 + |y|²)` of centred positions, its mean removed."""
    y = centred(x, segments)
    return centred(-y / (1 + y.square().sum(1, keepdim=True)), segments)


def test_a_good_flow_obeys_every_law() -> None:
    assert broken(attraction) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_egnn_flow_obeys_every_law(dtype: torch.dtype) -> None:
    flow = flow_of(enlarged_field(gain=50.0), 3, 1.3, (2, 3)).to(dtype)
    laws = measured(flow)
    assert all(law.holds for law in laws.values()), "\n".join(map(str, laws.values()))
    assert {law.dtype for law in laws.values()} == {"float64"}


def test_a_flow_of_elements_obeys_every_law_and_is_left_as_it_was() -> None:
    flow = element_flow(Solver("rk4", steps=2)).float()
    solver = flow.solver
    weights = {name: value.clone() for name, value in flow.state_dict().items()}
    laws = measured(flow)
    assert all(law.holds for law in laws.values()), "\n".join(map(str, laws.values()))
    assert flow.solver is solver
    assert all(torch.equal(weights[name], value) for name, value in flow.state_dict().items())
    assert next(flow.parameters()).dtype is torch.float32


def absolute(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    return centred(-x / (1 + x.square().sum(1, keepdim=True)), segments)


def lopsided(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    return attraction(t, x, segments) * torch.tensor([1.0, 0.5])


def swirl(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    """Turns one way round: rotations are obeyed, reflections are not, volumes not changed."""
    y = centred(x, segments)
    turn = torch.stack([-y[:, 1], y[:, 0]], 1) * y.square().sum(1, keepdim=True).rsqrt().clamp(
        max=9
    )
    return attraction(t, x, segments) + centred(turn, segments)


def ordered(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    weight = 1 + 0.3 * segments.place.unsqueeze(1)
    return centred(attraction(t, x, segments) * weight, segments)


def leaking(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    y = centred(x, segments)
    return attraction(t, x, segments) * (1 + y.square().mean())


def drifting(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
    """Equivariant in every way but its centre of mass, pulled towards the outermost points."""
    y = centred(x, segments)
    return -y / (1 + y.square().sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("field", "missed"),
    [
        (absolute, {"velocity: translations"}),
        (lopsided, {"velocity: rotations", "log-likelihood: motions"}),
        (swirl, {"velocity: rotations"}),
        (ordered, {"velocity: permutations", "log-likelihood: permutations"}),
        (leaking, {"velocity: independence", "log-likelihood: independence"}),
        (drifting, {"velocity: the centre"}),
    ],
)
def test_a_broken_flow_misses_the_law_it_breaks(field: Field, missed: set[str]) -> None:
    found = broken(field)
    for law in missed:
        assert any(name.startswith(law) for name in found), found


def test_each_broken_flow_misses_no_law_it_obeys() -> None:
    assert {name.split(",")[0] for name in broken(drifting)} == {
        "velocity: the centre of mass at rest"
    }
    assert not any("permutations" in name or "independence" in name for name in broken(lopsided))


def test_a_field_that_cannot_be_gone_back_along_misses_the_round_trip() -> None:
    def collapsing(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        return -16 * centred(x, segments)

    assert any(name.startswith("inverse") for name in broken(collapsing))


def test_a_trace_that_the_estimate_does_not_agree_with_is_found() -> None:
    """The exact trace supposes that the field is blind to translations; this one is not."""

    def sees_the_centre(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        return centred(torch.tanh(3 * x) * (1 + segments.place.unsqueeze(1)), segments)

    assert any(name.startswith("divergence") for name in broken(sees_the_centre))


def test_a_sample_scored_otherwise_than_drawn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of(FunctionField(attraction), 2, 1.3, (3, 4))
    plain = Flow._log_scale
    calls: list[int] = []

    def forgetful(self: Flow, clouds: Segments) -> Tensor:
        calls.append(1)
        return plain(self, clouds) * (len(calls) % 2)

    monkeypatch.setattr(Flow, "_log_scale", forgetful)
    found = {name for name, law in measured(flow).items() if not law.holds}
    assert any(name.startswith("log-likelihood: of a sample") for name in found)


def test_a_field_that_is_not_finite_breaks_laws_and_not_the_check() -> None:
    """Near the noise the field is good; a motion away from it is NaN."""

    def nowhere(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        far = (x.abs() > 5).any()
        return torch.where(far, math.nan, attraction(t, x, segments))

    assert any(name.startswith("velocity: translations") for name in broken(nowhere))


def test_a_law_says_whether_it_holds() -> None:
    good, bad = Law("a", 1e-12, 1e-10), Law("b", 0.3, 1e-10)
    assert good.holds
    assert not bad.holds
    assert not Law("c", math.nan, 1.0).holds
    assert not Law("d", math.inf, 1.0).holds
    assert str(good).startswith("ok ")
    assert str(bad).startswith("FAIL b")
    assert "3.0e-01" in str(bad)
    assert "float64" in str(bad)


def test_a_detached_jacobian_is_found_by_finite_differences() -> None:
    def detached(t: Tensor, x: Tensor, segments: Segments) -> Tensor:
        return attraction(t, x, segments) + 0 * x + 0.3 * attraction(t, x.detach(), segments)

    assert "divergence: exact against finite differences" in broken(detached)
