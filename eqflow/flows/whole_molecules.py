"""What all models of whole molecules share: sizes, types of atoms, and molecules to be filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.abstract import AbstractFlow
from eqflow.flows.atom_types import AtomTypes
from eqflow.flows.inpainting import Fixed
from eqflow.flows.properties import Asked
from eqflow.flows.sizes import Sizes
from eqflow.geometry import Clouds, Segments, centred


class AbstractMolecularFlow(AbstractFlow):
    """A model of molecules: how many atoms there are, which, and where.

    Attributes:
        sizes: How many atoms there are.
        types: What atoms there are.
    """

    sizes: Sizes
    types: AtomTypes

    def _positions(self, clouds: Clouds) -> tuple[Tensor, Segments]:
        """Centred positions in the unit of the data, as precise as the weights, and whose.

        Raises:
            UsageError: If the clouds have another dimension.
        """
        if clouds.dimension != self.dimension:
            raise UsageError(
                f"found clouds in {clouds.dimension} dimensions, expected {self.dimension}."
            )
        like = next(self.parameters())
        segments = Segments(clouds.ptr.to(like.device))
        x = centred(clouds.x.to(like.device, torch.float64), segments)
        return x.to(like.dtype), segments

    def _context(self, clouds: Clouds, segments: Segments, like: Tensor) -> Tensor | None:
        if self.properties is None:
            return None
        return self.properties.context(clouds, segments, like)

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
        least = 1 if fixed is None else len(Fixed.of(fixed))
        return self._template(count, seed, sizes, asked, least)

    def _template(
        self,
        count: int,
        seed: int,
        sizes: int | Sequence[int] | None,
        properties: Mapping[str, Tensor],
        least: int,
    ) -> Clouds:
        """Clouds of the sizes to be drawn, none below `least`, with all points at the origin."""
        if count < 1:
            raise UsageError(f"sample: found n = {count}, expected at least 1.")
        source = rng.generator(seed, "sample", "sizes")
        if sizes is None and self.properties is not None and properties:
            places = self.properties.draw(properties, source, self.sizes.sizes >= least)
            sizes = self.sizes.sizes[places].tolist()
        lengths = self.sizes.draw(count, source, sizes, least)
        segments = Segments.of_lengths(lengths)
        x = torch.zeros(segments.rows, self.dimension)
        return Clouds(x, segments.ptr, properties=properties)
