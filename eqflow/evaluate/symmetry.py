"""The velocity of a trained flow as a function of clouds, whose symmetry anyone can measure.

>>> from eqflow.testing import symmetry_report
>>> report = symmetry_report("runs/dw4")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from eqflow.errors import UsageError
from eqflow.evaluate.laws import velocity_of_flow
from eqflow.evaluate.masked_laws import masked_velocity_at
from eqflow.evaluate.molecular_laws import molecular_velocity_at
from eqflow.flows import Flow, MaskedMolecularFlow, MolecularFlow
from eqflow.flows.atom_types import AtomTypes
from eqflow.geometry import Clouds
from eqflow.testing import clouds as named_clouds

MIDDLE = 0.5


class CloudVelocity(nn.Module):
    """The velocity of positions at a time, `fn(x, ptr, h)` with `h` (N, 1) the atomic numbers.

    It is a vector: it turns with the cloud, follows its points and is blind to translations. Where
    a flow knows an element with several charges, its atoms have that nearest to 0.

    Args:
        flow: A flow of structures, of any kind.
        t: Time, from 0 at the data to 1 at the noise.

    Raises:
        UsageError: If `flow` is no flow of structures.
    """

    def __init__(self, flow: nn.Module, t: float = MIDDLE) -> None:
        super().__init__()
        if not isinstance(flow, Flow | MolecularFlow | MaskedMolecularFlow):
            raise UsageError(
                f"flow: found a {type(flow).__name__}, expected a flow of structures: nothing else "
                "has a velocity of positions."
            )
        self.flow = flow
        self.t = t

    @property
    def dimension(self) -> int:
        """Number of coordinates of a point."""
        return self.flow.dimension

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the flow knows; empty where points have no element."""
        flow = self.flow
        return flow.elements if isinstance(flow, Flow) else flow.types.elements

    def forward(self, x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        """Velocities (N, d) of clouds at positions `x` (N, d), in the unit of the data.

        Raises:
            UnknownElement: If an element is not one of the flow's.
        """
        numbers = h[:, 0].round().to(torch.int64) if self.elements else None
        batch = Clouds(x, ptr, numbers)
        if isinstance(self.flow, Flow):
            return velocity_of_flow(self.flow, batch, self.t)
        kinds = _kinds(self.flow.types, batch).unsqueeze(1)
        if isinstance(self.flow, MolecularFlow):
            return molecular_velocity_at(self.flow, self.t)(x, ptr, kinds + 1)
        return masked_velocity_at(self.flow, self.t)(x, ptr, kinds)

    def symmetry_clouds(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, Clouds]]:
        """`eqflow.testing.clouds()` in the flow's dimension, of elements that it knows.

        Points of different elements have different ones still, as far as there are enough.
        """
        for name, batch in named_clouds(self.dimension, dtype):
            yield name, _of_elements(batch, self.elements)


def _kinds(types: AtomTypes, batch: Clouds) -> Tensor:
    """The type of each atom, shape (N,), by its element alone."""
    charges = types.charges or (0,) * len(types)
    nearest: dict[int, int] = {}
    for kind, number in sorted(enumerate(types.numbers), key=lambda pair: abs(charges[pair[0]])):
        nearest.setdefault(number, kind)
    place = AtomTypes(types.elements).kinds(batch)
    return place.new_tensor([nearest[element] for element in types.elements])[place]


def _of_elements(batch: Clouds, elements: tuple[int, ...]) -> Clouds:
    if not elements or batch.numbers is None:
        return batch
    known = batch.numbers.new_tensor(elements)
    if bool(torch.isin(batch.numbers, known).all()):
        return batch
    place = torch.unique(batch.numbers, return_inverse=True)[1]
    return replace(batch, numbers=known[place % len(elements)])
