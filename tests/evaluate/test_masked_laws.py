"""Each law holds for a good flow with masked types and is missed by one that breaks it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eqflow.edges import Edges
from eqflow.evaluate.masked_laws import masked_laws
from eqflow.flows import ContinuousFlow, MaskedMolecularFlow, Sizes
from eqflow.geometry import centred
from eqflow.nn import AbstractMaskedField

ELEMENTS = (1, 6)
SIZES = Sizes(torch.tensor([2, 3]), torch.tensor([0.5, 0.5]).double().log())


class Broken(AbstractMaskedField):
    """A field that obeys every law but the one named."""

    def __init__(self, law: str) -> None:
        super().__init__()
        self.categories = len(ELEMENTS)
        self.context_features = self.categories + 1
        self.law = law
        self.unit = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert context is not None
        inside = centred(x, edges.clouds)
        size = inside.square().sum(1, keepdim=True)
        logits = context[:, :2] / (1 + size)
        v = centred(-self.unit * inside * (1 + context[:, 2:]) / (1 + size), edges.clouds)
        if self.law == "velocity: translations, T(3)":
            v = centred(v / (1 + x.square().sum(1, keepdim=True)), edges.clouds)
        if self.law == "velocity: the centre of mass at rest":
            v = v + size
        if self.law == "logits: motions, E(3)":
            logits = logits + inside[:, :1]
        if self.law == "logits: permutations, S(n)":
            logits = logits + edges.clouds.place.unsqueeze(1)
        if self.law == "logits: independence of the batch":
            logits = logits + logits.mean(0)
        return v, logits


def missed(law: str) -> set[str]:
    flow = MaskedMolecularFlow(ContinuousFlow(Broken(law)), SIZES, ELEMENTS)
    laws = list(masked_laws(flow, structures=3))
    assert len(laws) == 9
    return {law.name for law in laws if not law.holds}


def test_a_good_flow_obeys_every_law() -> None:
    assert missed("none") == set()


@pytest.mark.parametrize(
    "law",
    [
        "velocity: translations, T(3)",
        "velocity: the centre of mass at rest",
        "logits: motions, E(3)",
        "logits: permutations, S(n)",
        "logits: independence of the batch",
    ],
)
def test_a_field_that_breaks_a_law_is_found(law: str) -> None:
    assert law in missed(law)
