"""Each law holds for a good joint flow and is missed by one that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.evaluate.molecular_laws import molecular_laws
from eqflow.flows import ActNorm, ArgmaxDequantiser, ContinuousFlow, Labels, MolecularFlow, Sizes
from eqflow.geometry import centred
from eqflow.nn import AbstractField

ELEMENTS = (1, 6)
SIZES = Sizes(torch.tensor([2, 3]), torch.tensor([0.5, 0.5]).double().log())
Parts = tuple[Tensor, Tensor]


class Joint(AbstractField):
    """The field `fn(x, h, edges) -> (ẋ, ḣ)` of positions as they are given."""

    def __init__(self, fn: Callable[[Tensor, Tensor, Edges], Parts]) -> None:
        super().__init__()
        self.state_features = len(ELEMENTS)
        self.fn = fn
        self.unit = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        return self.unit * torch.cat(self.fn(x[:, :3], x[:, 3:], edges), 1)


def good(x: Tensor, h: Tensor, edges: Edges) -> Parts:
    x = centred(x, edges.clouds)
    size = x.square().sum(1, keepdim=True)
    return centred(-x * torch.tanh(h[:, :1]) / (1 + size), edges.clouds), torch.sin(h) / (1 + size)


def absolute(x: Tensor, h: Tensor, edges: Edges) -> Parts:
    _, changed = good(x, h, edges)
    return centred(-x / (1 + x.square().sum(1, keepdim=True)), edges.clouds), changed


def towards_x(x: Tensor, h: Tensor, edges: Edges) -> Parts:
    moved, changed = good(x, h, edges)
    return moved, changed + centred(x, edges.clouds)[:, :1]


def of_the_whole_batch(x: Tensor, h: Tensor, edges: Edges) -> Parts:
    moved, changed = good(x, h, edges)
    return moved, changed + h.mean(0)


class Mislabelled(ArgmaxDequantiser):
    """Features stand for the category after the right one."""

    def labels(self, v: Tensor) -> Labels:
        kind, integers = super().labels(v)
        return Labels((kind + 1) % self.kinds, integers)


class Misplaced(ArgmaxDequantiser):
    """The inverse is off."""

    def inverse(self, labels, x, clouds, v):  # type: ignore[no-untyped-def]
        return super().inverse(labels, x, clouds, v) + 0.1


def missed(
    fn: Callable[[Tensor, Tensor, Edges], Parts] = good,
    dequantiser: type[ArgmaxDequantiser] = ArgmaxDequantiser,
) -> set[str]:
    width = len(ELEMENTS)
    actnorm = ActNorm(width).double()
    flow = MolecularFlow(ContinuousFlow(Joint(fn)), dequantiser(width), actnorm, SIZES, ELEMENTS)
    solver, weights = flow.solver, flow.continuous.field.unit.clone()
    laws = list(molecular_laws(flow, structures=2))
    assert flow.solver is solver
    assert torch.equal(flow.continuous.field.unit, weights)
    return {law.name for law in laws if not law.holds}


def test_a_good_flow_obeys_every_law() -> None:
    assert missed() == set()


@pytest.mark.parametrize(
    ("field", "law"),
    [
        (absolute, "velocity: translations, T(3)"),
        (towards_x, "features: motions, E(3)"),
        (towards_x, "bound given the size: motions, E(3)"),
        (of_the_whole_batch, "features: independence of the batch"),
        (of_the_whole_batch, "bound given the size: independence of the batch"),
    ],
)
def test_a_field_that_breaks_a_law_is_found(
    field: Callable[[Tensor, Tensor, Edges], Parts], law: str
) -> None:
    assert law in missed(field)


def test_a_dequantiser_that_breaks_a_law_is_found() -> None:
    assert "dequantiser: wrong labels" in missed(dequantiser=Mislabelled)
    assert missed(dequantiser=Misplaced) == {"dequantiser: features back to noise"}
