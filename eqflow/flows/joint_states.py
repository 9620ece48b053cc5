"""Molecules as states of a flow, and back: positions, and features that stand for labels.

What atoms are is part of such a model: a dequantiser makes features of their labels, and `ActNorm`
standardises both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.flows.actnorm import ActNorm
from eqflow.flows.atom_types import integers_of
from eqflow.flows.dequantisation import AbstractDequantiser, Labels
from eqflow.flows.inpainting import Fixed
from eqflow.flows.objectives import Batch
from eqflow.flows.whole_molecules import AbstractMolecularFlow
from eqflow.geometry import Clouds, Segments, centred, split_state


class Molecules(NamedTuple):
    """Molecules as a flow takes them.

    Attributes:
        x: Centred positions in the unit of the data, shape (N, d).
        clouds: Which atoms belong to which molecule.
        labels: What the atoms are.
        context: What is known besides, shape (N, C), or None.
    """

    x: Tensor
    clouds: Segments
    labels: Labels
    context: Tensor | None = None


class AbstractJointFlow(AbstractMolecularFlow):
    """A model of molecules as states of positions and features.

    Attributes:
        dequantiser: How labels become features.
        actnorm: Standardisation of positions and features.
        integer_features: What the integers of an atom are, names of `INTEGER_FEATURES`.
    """

    dequantiser: AbstractDequantiser
    actnorm: ActNorm
    integer_features: tuple[str, ...]

    @property
    def models_charges(self) -> bool:
        """Whether formal charges are part of what its atoms are."""
        return self.types.charges is not None or "formal_charge" in self.integer_features

    def encode(self, clouds: Clouds) -> Molecules:
        """Clouds in the data's units as the flow takes them.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an element is not one of the model's, or there is none.
        """
        x, segments = self._positions(clouds)
        kind, integers = self.types.kinds(clouds), integers_of(clouds, self.integer_features)
        labels = Labels(kind.to(x.device), integers.to(x.device))
        return Molecules(x, segments, labels, self._context(clouds, segments, x))

    def batch(self, clouds: Clouds, source: torch.Generator) -> Batch:
        """Molecules as a training step takes them, with features drawn for their labels.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an atom is not of one of the model's types, or there are no elements.
        """
        molecules = self.encode(clouds)
        state, log_q = self._dequantised(molecules, source)
        log_det = self.actnorm.log_det(molecules.clouds, self.dimension)
        return Batch(
            self.actnorm(state),
            molecules.clouds,
            molecules.context,
            kinds=molecules.labels.kind,
            # Of a size's probability, 0 for one that no training molecule has, nothing is learned.
            log_density=log_det - log_q,
        )

    @torch.no_grad()
    def standardise(self, clouds: Clouds, source: torch.Generator) -> None:
        """Scale positions and features so that those of some molecules have unit variance."""
        molecules = self.encode(clouds)
        state, _ = self._dequantised(molecules, source)
        self.actnorm.fit(state, molecules.clouds)

    def state(self, molecules: Molecules, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and dequantised labels (N, d + K), and `log q` of the latter (B,)."""
        x, clouds = molecules.x, molecules.clouds
        v, log_q = self.dequantiser(molecules.labels, x, clouds, noise)
        return torch.cat([x, v], 1), log_q

    def _dequantised(self, molecules: Molecules, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """`state`, of noise that is drawn."""
        noise = self.dequantiser.noise(molecules.clouds.rows, molecules.x, source)
        return self.state(molecules, noise)

    def _known(self, given: Fixed, count: int, source: torch.Generator) -> Tensor:
        """Standardised states of a fragment, `count` times, each with features of its own."""
        state, _ = self._dequantised(self.encode(given.repeated(count)), source)
        return self.actnorm(state)

    def _decoded(
        self, template: Clouds, state: Tensor, given: Fixed | None
    ) -> tuple[Clouds, Tensor]:
        """Molecules of states (N, d + K) in the data's units, and the integers of their atoms.

        The atoms of a fragment are as it has them, whatever their features stand for.
        """
        clouds = Segments(template.ptr.to(state.device))
        x, v = split_state(state, self.actnorm.features)
        x, (kind, integers) = centred(x, clouds).cpu(), self.dequantiser.labels(v)
        if given is not None:
            x = given.in_place(x, template.segments)
            rows, stated = given.within(clouds), self.encode(given.repeated(len(template))).labels
            kind[rows], integers[rows] = stated
        molecules, integers = self._filled(template, x, kind), integers.cpu()
        if "formal_charge" in self.integer_features:
            charges = integers[:, self.integer_features.index("formal_charge")]
            molecules = replace(molecules, charges=charges)
        return molecules, integers
