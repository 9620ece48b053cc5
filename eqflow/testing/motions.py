r"""Random elements of the symmetry groups of a cloud.

The Euclidean group :math:`E(d) = O(d) \ltimes T(d)` acts by `x_i ↦ R x_i + t`; its subgroups leave
out reflections (`SE(d)`, `SO(d)`), translations (`O(d)`, `SO(d)`) or both and rotations (`T(d)`).
`S(n)` reorders the points of a cloud. A product such as `E(3)×S(n)` is made of the motions of both:
what is equivariant under the factors is so under their product. In a batch each cloud is moved by
an element of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Clouds, Segments, centred, random_orthogonal, rotate
from eqflow.geometry.euclidean import parsed_group

# The kinds of motion each group is made of, the plain ones first: the one that fails tells why.
KINDS = {
    "E": ("translation", "rotation", "reflection", "combined"),
    "SE": ("translation", "rotation", "combined"),
    "O": ("rotation", "reflection"),
    "SO": ("rotation",),
    "T": ("translation",),
    "S": ("permutation",),
}


@dataclass(frozen=True, eq=False)
class Motion:
    """One element of a group for each cloud of a batch of B clouds and N points.

    Attributes:
        kind: What it is made of, one of the values of `KINDS`.
        rotation: Orthogonal matrices R, shape (B, d, d), float64.
        translation: Shifts t, shape (B, d), float64, in the unit of the positions.
        order: The point that comes to each place, shape (N,), int64; it stays in its cloud.
    """

    kind: str
    rotation: Tensor
    translation: Tensor
    order: Tensor

    @classmethod
    def identity(cls, batch: Clouds) -> Motion:
        """The motion that leaves every cloud of `batch` where it is."""
        like = batch.x.new_zeros((), dtype=torch.float64)
        return cls(
            "identity",
            torch.eye(batch.dimension).to(like).repeat(len(batch), 1, 1),
            like.new_zeros(len(batch), batch.dimension),
            torch.arange(batch.x.shape[0], device=batch.x.device),
        )

    def apply(self, batch: Clouds) -> Clouds:
        """The moved clouds: `x_i ↦ R x_i + t`, computed in float64, then reordered.

        >>> pair = Clouds(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 2]))
        >>> swap = replace(Motion.identity(pair), order=torch.tensor([1, 0]))
        >>> swap.apply(pair).x.tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        """
        x = rotate(batch.x.to(self.rotation.dtype), self.rotation, batch.segments)
        x = x + batch.segments.expand(self.translation)
        numbers, charges = (
            None if labels is None else labels[self.order]
            for labels in (batch.numbers, batch.charges)
        )
        x = x.to(batch.x.dtype)[self.order]
        return replace(batch, x=x, numbers=numbers, charges=charges)


def random_motions(
    batch: Clouds, group: str = "E(3)", seed: int = 0, count: int = 3
) -> Iterator[Motion]:
    """`count` random motions of each kind that `group` is made of.

    Rotations follow the Haar measure; a translation is about as long as its cloud is wide.

    Args:
        batch: The clouds to move.
        group: `"E(d)"`, `"SE(d)"`, `"O(d)"`, `"SO(d)"`, `"T(d)"` with a number for d, `"S(n)"`, or
            a product of one of them with `S(n)`, `"E(3)×S(n)"` or `"E(3)xS(n)"`.
        seed: The motions are a function of it.
        count: Motions of each kind.

    Raises:
        UsageError: If there is no such group, or `count` is not positive.
        ShapeError: If the group acts in another dimension than that of the clouds.
    """
    families = factors(group, batch.dimension)
    if count < 1:
        raise UsageError(f"motions: found {count}, expected at least 1.")
    for family in families:
        for kind in KINDS[family]:
            for turn in range(count):
                source = rng.generator(seed, "testing", kind, turn, device=batch.x.device)
                yield _draw(kind, batch, source, proper=family != "E" or kind != "combined")


def _draw(kind: str, batch: Clouds, source: torch.Generator, proper: bool) -> Motion:
    still = Motion.identity(batch)
    like, count, dimension = still.translation, len(batch), batch.dimension
    if kind == "permutation":
        return replace(still, kind=kind, order=_shuffled(batch.segments, source))
    rotation, translation = still.rotation, still.translation
    if kind != "translation":
        rotation = random_orthogonal(count, dimension, like, source, proper=proper)
    if kind == "reflection":
        rotation[:, 0] *= -1
    if kind in ("translation", "combined"):
        width = spread(batch)
        width = torch.where(width > 0, width, torch.ones_like(width))
        translation = 3 * width.unsqueeze(-1) * rng.normal((count, dimension), like, source)
    return Motion(kind, rotation, translation, still.order)


def spread(batch: Clouds) -> Tensor:
    """Root mean square distance from the centre of mass, shape (B,), float64; 0 for one point."""
    x = centred(batch.x.double(), batch.segments)
    return batch.segments.mean(x.square().sum(-1)).sqrt()


def _shuffled(segments: Segments, source: torch.Generator) -> Tensor:
    starts = segments.ptr[:-1].tolist()
    lengths = segments.lengths.tolist()
    parts = [
        start + rng.permutation(length, source)
        for start, length in zip(starts, lengths, strict=True)
    ]
    return torch.cat(parts) if parts else segments.ptr.new_empty(0)


def factors(group: str, dimension: int) -> list[str]:
    """The families, keys of `KINDS`, that a group is a product of.

    Raises:
        UsageError: If there is no such group, or it moves positions by more than one factor.
        ShapeError: If the group acts in another dimension than that of the clouds.

    >>> factors("E(3)×S(n)", 3)
    ['E', 'S']
    """
    families = [_family(part.strip(), group, dimension) for part in re.split("[×x*]", group)]
    if len(families) != len(set(families)) or len([f for f in families if f != "S"]) > 1:
        raise UsageError(
            f"group: found {group!r}, a product of {len(families)} groups; expected one of "
            f"positions and S(n), such as 'E({dimension})×S(n)'."
        )
    return families


def _family(name: str, group: str, dimension: int) -> str:
    known = [f"{family}({dimension})" for family in KINDS if family != "S"] + ["S(n)"]
    if name == "S(n)":
        return "S"
    found = parsed_group(name)
    if found is None:
        near = get_close_matches(name, known, n=2, cutoff=0.3) or known
        raise UsageError(
            f"group: found {group!r}, expected one of {', '.join(known)} or a product such as "
            f"'E({dimension})×S(n)'. Did you mean {' or '.join(map(repr, near))}?"
        )
    if found.dimension != dimension:
        raise ShapeError(
            f"group: {group} acts in {found.dimension} dimensions, but the clouds have "
            f"{dimension}. Pass group='{found.family}({dimension})'."
        )
    return found.family
