"""How many points, and of which elements: the histogram a flow draws structures' make-up from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from eqflow.errors import UnknownElement, UsageError
from eqflow.flows.atom_types import AtomTypes
from eqflow.geometry import Clouds

# Atomic numbers of one structure, (n,), or of each of several.
Numbers = Sequence[int] | Tensor | Sequence[Sequence[int]] | Sequence[Tensor]


def elements_of_each(numbers: Numbers, count: int) -> tuple[Tensor, Tensor]:
    """Sizes (count,) and atomic numbers (N,) of `count` structures whose elements are given.

    Args:
        numbers: Atomic numbers that all structures have, (n,), or those of each, `count` of them.
        count: How many.

    Raises:
        UsageError: If they are neither, or a structure has no point.
    """
    one = hasattr(numbers, "dtype") or all(isinstance(number, Integral) for number in numbers)
    each = [torch.as_tensor(part, dtype=torch.int64) for part in ([numbers] if one else numbers)]
    if one:
        each *= count
    if len(each) != count or any(part.dim() != 1 or not len(part) for part in each):
        raise UsageError(
            f"sample: found numbers for {len(each)} structures of shapes "
            f"{sorted({tuple(part.shape) for part in each})}, expected the atomic numbers (n,) of "
            f"one structure, or those of each of the {count}."
        )
    return torch.tensor([len(part) for part in each]), torch.cat(each)


@dataclass(frozen=True)
class Compositions:
    """Make-up of the structures of a data set, with how often each occurs.

    Attributes:
        elements: Atomic numbers the model knows, rising; empty where points have no element.
        counts: Number of points of each element (one column where there is none), shape (M, E).
        weights: How often each make-up occurs, shape (M,), int64.
    """

    elements: tuple[int, ...]
    counts: Tensor
    weights: Tensor

    @classmethod
    def of(cls, clouds: Clouds, elements: Sequence[int] = ()) -> Compositions:
        """The make-up of every cloud, counted.

        Raises:
            UnknownElement: If a cloud holds an element that is not in `elements`.
        """
        known = cls(tuple(sorted(elements)), torch.zeros(0, 1), torch.zeros(0))
        kind = known.types(clouds)
        if kind is None:
            counts = clouds.sizes.unsqueeze(1)
        else:
            onehot = torch.nn.functional.one_hot(kind, len(known.elements))
            counts = clouds.segments.sum(onehot)
        unique, weights = counts.cpu().unique(dim=0, return_counts=True)
        return cls(known.elements, unique, weights)

    def types(self, clouds: Clouds) -> Tensor | None:
        """Place of each point's element among `elements`, shape (N,), or None where there is none.

        Raises:
            UnknownElement: If an element is missing from the model's, or missing altogether.
        """
        if not self.elements:
            return None
        if clouds.numbers is None:
            raise UnknownElement(
                "the structures have no elements, but this model is conditioned on them "
                f"(atomic numbers {', '.join(map(str, self.elements))})."
            )
        return AtomTypes(self.elements).kinds(clouds)

    def places(self, clouds: Clouds) -> Tensor:
        """Place of each cloud's make-up among these, shape (B,), int64.

        Raises:
            UsageError: If a make-up is none of these.
        """
        kind = self.types(clouds)
        counts = clouds.sizes.unsqueeze(1)
        if kind is not None:
            counts = clouds.segments.sum(torch.nn.functional.one_hot(kind, len(self.elements)))
        every, which = torch.cat([self.counts, counts.cpu()]).unique(dim=0, return_inverse=True)
        place = torch.full((len(every),), -1).index_put(
            (which[: len(self.counts)],), torch.arange(len(self.counts))
        )
        places = place[which[len(self.counts) :]]
        if (places < 0).any():
            raise UsageError(
                f"compositions: found {int((places < 0).sum())} structures whose make-up is none "
                f"of the {len(self.counts)} known, expected those they were counted of."
            )
        return places

    def containing(self, fragment: Clouds) -> Compositions:
        """Those make-ups that have the points of one structure, and perhaps more.

        Raises:
            UnknownElement: If it holds an element that is not the model's.
            UsageError: If there is none.
        """
        enough = self.contain(fragment)
        return Compositions(self.elements, self.counts[enough], self.weights[enough])

    def contain(self, fragment: Clouds) -> Tensor:
        """Which make-ups have the points of one structure, shape (M,), bool; see `containing`."""
        kind = self.types(fragment)
        needed = fragment.sizes
        if kind is not None:
            needed = torch.bincount(kind, minlength=len(self.elements))
        enough = (self.counts >= needed.cpu()).all(1)
        if not enough.any():
            raise UsageError(
                f"fixed: found {len(fragment.x)} fixed points that no training structure has among "
                "its own; expected fewer, or pass numbers=… (or sizes=… where there are no "
                "elements)."
            )
        return enough

    def at(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sizes (B,) and atomic numbers (N,) or None of structures of some make-ups."""
        return self._expanded(self.counts[places])

    def draw(
        self,
        count: int,
        source: torch.Generator,
        sizes: int | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Make-ups of `count` structures: sizes (count,) and atomic numbers (N,) or None.

        Args:
            count: How many.
            source: Where the draws come from.
            sizes: Fixed size of all, or of each; drawn by frequency where None.

        Raises:
            UsageError: If no known make-up has a size asked for, or there are not `count` sizes.
        """
        totals = self.counts.sum(1)
        if sizes is None:
            chosen = torch.multinomial(
                self.weights.double(), count, replacement=True, generator=source
            )
            return self._expanded(self.counts[chosen])
        wanted = torch.tensor(sizes, dtype=torch.int64)
        if wanted.dim() > 0 and len(wanted) != count:
            raise UsageError(
                f"sizes: found {len(wanted)} for {count} structures; pass one, or one of each."
            )
        wanted = wanted.expand(count)
        if int(wanted.min()) < 1:
            raise UsageError(f"sizes: found {int(wanted.min())}, expected at least 1.")
        if not self.elements:
            return wanted, None
        chosen = torch.zeros(count, dtype=torch.int64)
        for size in wanted.unique().tolist():
            weight = self.weights.double() * (totals == size)
            if not weight.any():
                raise UsageError(
                    f"sizes: found {size}, but no training structure has {size} points; expected "
                    f"{int(totals.min())} to {int(totals.max())}, or pass numbers=…."
                )
            asked = (wanted == size).nonzero().squeeze(1)
            chosen[asked] = torch.multinomial(
                weight, len(asked), replacement=True, generator=source
            )
        return self._expanded(self.counts[chosen])

    def _expanded(self, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.elements:
            return counts.sum(1), None
        every = torch.tensor(self.elements).repeat(len(counts))
        return counts.sum(1), every.repeat_interleave(counts.reshape(-1))

    def to_plain(self) -> dict[str, Any]:
        """Plain values for storing."""
        return {
            "elements": list(self.elements),
            "counts": self.counts.tolist(),
            "weights": self.weights.tolist(),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Compositions:
        """The inverse of `to_plain`."""
        return cls(
            tuple(plain["elements"]),
            torch.tensor(plain["counts"], dtype=torch.int64),
            torch.tensor(plain["weights"], dtype=torch.int64),
        )
