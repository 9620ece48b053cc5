"""What models of positions share: structures whose make-up is given, as states of a flow and back.

What points are is no part of such a model. It is context: the elements of a structure, by the place
of each among those that the model knows, and whatever properties of the structure are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.abstract import AbstractFlow
from eqflow.flows.compositions import Compositions, Numbers, elements_of_each
from eqflow.flows.inpainting import Fixed
from eqflow.flows.objectives import Batch
from eqflow.flows.properties import Asked, as_asked
from eqflow.geometry import Clouds, Segments, centred


class AbstractPositionFlow(AbstractFlow):
    """A model of where points are, given how many there are and of which elements.

    Attributes:
        scale: Length that one unit of the flow stands for, in the unit of the data.
        compositions: Make-up of the training structures.
    """

    scale: float
    compositions: Compositions

    def encode(self, clouds: Clouds) -> Batch:
        """Clouds in the data's units as a batch of the flow: centred, scaled, elements one-hot.

        Context is the elements and then the properties.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an element is not one of the model's.
        """
        x, segments = self._positions(clouds, self.scale)
        types = self.compositions.types(clouds)
        context = []
        if types is not None:
            types = types.to(x.device)
            context.append(one_hot(types, len(self.elements)).to(x.dtype))
        known = self._context(clouds, segments, x)
        if known is not None:
            context.append(known)
        return Batch(x, segments, torch.cat(context, 1) if context else None, types)

    def batch(self, clouds: Clouds, source: torch.Generator) -> Batch:
        """What a training step takes, as `encode` makes it; nothing is drawn."""
        return self.encode(clouds)

    def make_up(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        numbers: Numbers | None = None,
        properties: Asked | None = None,
        fixed: Clouds | Fixed | None = None,
    ) -> Clouds:
        """See `AbstractFlow`; structures whose elements are known have them here as well.

        Raises:
            UsageError, UnknownElement: As `draw`.
        """
        asked, _ = self.conditions(count, properties, 1)
        given = None if fixed is None else Fixed.of(fixed)
        return self._template(count, seed, sizes, numbers, asked, given)

    def _template(
        self,
        count: int,
        seed: int,
        sizes: int | Sequence[int] | None,
        numbers: Numbers | None,
        properties: Mapping[str, Tensor],
        given: Fixed | None,
    ) -> Clouds:
        """Clouds with the make-up to be drawn and all points at the origin."""
        if count < 1:
            raise UsageError(f"sample: found n = {count}, expected at least 1.")
        elements: Tensor | None
        if numbers is not None:
            if sizes is not None:
                raise UsageError("sample: sizes and numbers contradict each other; pass one.")
            if not self.compositions.elements:
                raise UsageError("sample: this model knows no elements; pass sizes, not numbers.")
            lengths, elements = elements_of_each(numbers, count)
        else:
            source = rng.generator(seed, "sample", "compositions")
            known = self.compositions
            if sizes is None and self.properties is not None and properties:
                possible = None if given is None else known.contain(given.fragment)
                places = self.properties.draw(properties, source, possible)
                lengths, elements = known.at(places)
            else:
                known = known if given is None else known.containing(given.fragment)
                lengths, elements = known.draw(count, source, sizes)
        segments = Segments.of_lengths(lengths)
        x = torch.zeros(segments.rows, self.dimension, dtype=next(self.parameters()).dtype)
        template = Clouds(x, segments.ptr, elements, properties=properties)
        return template if given is None else given.leading(template)

    def _decoded(self, template: Clouds, x: Tensor, given: Fixed | None) -> Clouds:
        """A state of the flow as clouds in the data's units, centred, or where a fragment is."""
        x = centred(x.cpu(), template.segments) * self.scale
        x = x.to(template.x.dtype)
        if given is not None:
            x = given.in_place(x, template.segments)
        return replace(template, x=x, properties=as_asked(template.properties))
