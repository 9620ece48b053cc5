"""What a message pass is called with, as autograd takes it: one setting, and tensors in a row.

Autograd differentiates functions of tensors. A pass has tensors that may be missing, a graph and
options; here they are one object that goes along, and a list of the tensors there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor

from eqflow.edges.backend import Precision
from eqflow.edges.graph import Edges
from eqflow.edges.network import EdgeNetwork, Gate, MessageInputs

# How many tensors a pass can take.
INPUTS = len(MessageInputs._fields)
WEIGHTS = 10

T = TypeVar("T")
Slots = list[Tensor | None]


@dataclass(frozen=True, eq=False)
class Setting:
    """What a message pass depends on besides tensors, and which of the optional ones there are.

    Attributes:
        edges: The graph.
        precision: Of matrix products.
        coordinate_range, stabilized: As in `EdgeNetwork`.
        present: For each tensor a pass can take, in order, whether it is given.
    """

    edges: Edges
    precision: Precision
    coordinate_range: float | None
    stabilized: bool
    present: tuple[bool, ...]

    def slots(self, tensors: Sequence[Tensor | None]) -> Slots:
        """Every tensor a pass can take, None where it is not given."""
        given = iter(tensors)
        return [next(given) if there else None for there in self.present]

    def given(self, slots: Sequence[T]) -> tuple[T, ...]:
        """The inverse of `slots`."""
        return tuple(v for v, there in zip(slots, self.present, strict=True) if there)

    def network(self, slots: Slots) -> EdgeNetwork:
        """The network whose ten weights the slots are."""
        a, b, c, d, e, f, *gates = cast(list[Tensor], slots)
        return EdgeNetwork(
            a,
            b,
            c,
            d,
            e,
            f,
            attention=None if slots[6] is None else Gate(*gates[:2]),
            inference=None if slots[8] is None else Gate(*gates[2:]),
            coordinate_range=self.coordinate_range,
            stabilized=self.stabilized,
        )


def weights_of(network: EdgeNetwork) -> Slots:
    """The ten weights of a network, None for those of a gate it does not have."""
    gates = [part for gate in network[6:8] for part in (gate or (None, None))]
    return [*network[:6], *gates]
