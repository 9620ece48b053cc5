"""What all models of whole molecules share: sizes, types of atoms, and molecules to be filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.abstract import AbstractFlow
from eqflow.flows.atom_types import AtomTypes
from eqflow.flows.inpainting import Fixed
from eqflow.flows.properties import Asked, as_asked
from eqflow.flows.sizes import Sizes
from eqflow.geometry import Clouds, Segments


class AbstractMolecularFlow(AbstractFlow):
    """A model of molecules: how many atoms there are, which, and where.

    Attributes:
        sizes: How many atoms there are.
        types: What atoms there are.
    """

    sizes: Sizes
    types: AtomTypes

    def make_up(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        properties: Asked | None = None,
        fixed: Clouds | Fixed | None = None,
    ) -> Clouds:
        """See `AbstractFlow`; elements are drawn with the positions, and none are known here.

        Raises:
            UsageError: As `draw`.
        """
        asked, _ = self.conditions(count, properties, 1)
        given = None if fixed is None else Fixed.of(fixed)
        return self._template(count, seed, sizes, asked, given)

    def _template(
        self,
        count: int,
        seed: int,
        sizes: int | Sequence[int] | None,
        properties: Mapping[str, Tensor],
        given: Fixed | None,
    ) -> Clouds:
        """Clouds of the sizes to be drawn, with all points at the origin."""
        if count < 1:
            raise UsageError(f"sample: found n = {count}, expected at least 1.")
        source = rng.generator(seed, "sample", "sizes")
        least = 1 if given is None else len(given)
        if sizes is None and self.properties is not None and properties:
            places = self.properties.draw(properties, source, self.sizes.sizes >= least)
            sizes = self.sizes.sizes[places].tolist()
        lengths = self.sizes.draw(count, source, sizes, least)
        segments = Segments.of_lengths(lengths)
        x = torch.zeros(segments.rows, self.dimension)
        return Clouds(x, segments.ptr, properties=properties)

    def _filled(self, template: Clouds, x: Tensor, kinds: Tensor) -> Clouds:
        """A template with positions (N, d), in the unit of the data, and types of atoms (N,)."""
        numbers, charges = self.types.labels(kinds.cpu())
        properties = as_asked(template.properties)
        return replace(template, x=x, numbers=numbers, charges=charges, properties=properties)
