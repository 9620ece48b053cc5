r"""Does a density know real structures from corrupted ones? Each is scored beside its own original.

A corruption is a function of structures and a source of randomness, and changes each structure in
one way. The difference :math:`\log p(\text{corrupted}) - \log p(\text{real})` is paired: size and
composition, which differ far more between molecules, cancel where the corruption leaves them. The
area under the ROC curve does not pair: it is the probability that a real structure scores higher
than the corrupted form of another, and says whether one threshold could serve for all.

A mirrored structure is a control: a density on unoriented structures scores it as the original.

Reference: Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019),
arXiv:1810.09136, which is why likelihoods should be asked this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import ShapeError
from eqflow.evaluate.estimates import Estimate, interval, nothing, resampled, typical
from eqflow.geometry import Clouds, centre_of_mass

Corruption = Callable[[Clouds, torch.Generator], Clouds]
# Numbers of a resample held at a time, in `auroc`.
RESAMPLES_AT_ONCE = 32


def with_noise(clouds: Clouds, source: torch.Generator, sd: float) -> Clouds:
    """Normal noise of a standard deviation on each coordinate, in the unit of the data."""
    noise = rng.normal(tuple(clouds.x.shape), clouds.x, source)
    return clouds.with_positions(clouds.x + sd * noise)


def with_atom_displaced(clouds: Clouds, source: torch.Generator, distance: float) -> Clouds:
    """One atom of each structure moved by a distance in a random direction."""
    chosen = _one_of_each(clouds, source)
    way = rng.normal((len(clouds), clouds.dimension), clouds.x, source)
    way = distance * way / way.norm(dim=1, keepdim=True)
    x = clouds.x.clone()
    x[chosen] += way
    return clouds.with_positions(x)


def with_element_exchanged(clouds: Clouds, source: torch.Generator) -> Clouds:
    """One atom of each structure made one of another kind that occurs among them.

    A kind is an element with its formal charge. Where there is one kind alone, or none, structures
    stay as they are.
    """
    if clouds.numbers is None:
        return clouds
    charges = torch.zeros_like(clouds.numbers) if clouds.charges is None else clouds.charges
    kinds, of_atom = torch.stack([clouds.numbers, charges], 1).unique(dim=0, return_inverse=True)
    if len(kinds) < 2:
        return clouds
    chosen = _one_of_each(clouds, source)
    step = torch.randint(1, len(kinds), (len(clouds),), generator=source)
    exchanged = of_atom.index_copy(0, chosen, (of_atom[chosen] + step) % len(kinds))
    numbers, charges = kinds[exchanged].unbind(1)
    return replace(clouds, numbers=numbers, charges=None if clouds.charges is None else charges)


def with_atoms_swapped(clouds: Clouds, source: torch.Generator) -> Clouds:
    """Two atoms of different elements of each structure swapped, where it has two elements."""
    if clouds.numbers is None:
        return clouds
    segments = clouds.segments
    first = _one_of_each(clouds, source)
    differs = clouds.numbers != segments.expand(clouds.numbers[first])
    keys = rng.uniform((len(clouds.x), 1), clouds.x, source) + 1
    keys = segments.to_dense(torch.where(differs.unsqueeze(1), keys, torch.zeros_like(keys)))
    largest, place = keys.squeeze(2).max(1)
    has_other = largest > 0
    first, second = first[has_other], (segments.ptr[:-1] + place)[has_other]
    x = clouds.x.clone()
    x[first], x[second] = clouds.x[second], clouds.x[first]
    return clouds.with_positions(x)


def scaled(clouds: Clouds, source: torch.Generator, factor: float) -> Clouds:
    """All distances times a factor: compressed below 1, stretched above."""
    centre = clouds.segments.expand(centre_of_mass(clouds.x, clouds.segments))
    return clouds.with_positions(centre + factor * (clouds.x - centre))


def mirrored(clouds: Clouds, source: torch.Generator) -> Clouds:
    """The first coordinate reversed."""
    signs = clouds.x.new_ones(clouds.dimension)
    signs[0] = -1
    return clouds.with_positions(clouds.x * signs)


# Lengths in Å.
CORRUPTIONS: dict[str, Corruption] = {
    "mirrored": mirrored,
    "noise of 0.02 Å": partial(with_noise, sd=0.02),
    "noise of 0.1 Å": partial(with_noise, sd=0.1),
    "one atom displaced by 0.3 Å": partial(with_atom_displaced, distance=0.3),
    "compressed by 5 %": partial(scaled, factor=0.95),
    "stretched by 5 %": partial(scaled, factor=1.05),
    "two atoms swapped": with_atoms_swapped,
    "one element exchanged": with_element_exchanged,
}


class Comparison(NamedTuple):
    """Corrupted structures against the same ones as they are.

    Attributes:
        difference: Mean of `log p(corrupted) − log p(real)`, in nats, where both are finite.
        lower: Fraction of structures that score lower corrupted; ½ of those that score the same.
        auroc: Probability that a real structure scores higher than a corrupted one.
        differences: Of each structure, shape (B,); NaN where the corruption changes nothing or a
            score is missing.
    """

    difference: Estimate
    lower: Estimate
    auroc: Estimate
    differences: Tensor


def out_of_distribution(
    score: Callable[[Clouds], Tensor],
    clouds: Clouds,
    seed: int = 0,
    corruptions: Mapping[str, Corruption] = CORRUPTIONS,
) -> dict[str, Comparison]:
    """How each corruption changes the scores of real structures.

    Structures that a corruption leaves as they are, and those without a score, are counted as not
    computable. A corrupted structure of probability 0 scores −∞, lower than any other.

    Args:
        score: Log-likelihood of structures in nats, shape (B,). One that draws should draw the same
            for all calls: the noise that pairs share cancels.
        clouds: Real structures that no training saw.
        seed: Corruptions and resamples are a function of it.
        corruptions: By name.

    Raises:
        ShapeError: If a score is not one number a structure.
    """
    real = _scored(score, clouds)
    found = {}
    for name, corrupt in corruptions.items():
        corrupted = corrupt(clouds, rng.generator(seed, "corruption", name))
        known = _changed(clouds, corrupted) & ~real.isnan()
        values = torch.full_like(real, float("nan"))
        if known.any():
            # All are scored, at the places of the real ones, so that pairs draw the same.
            values = torch.where(known, _scored(score, corrupted), values)
        found[name] = compared(real, values, seed)
    return found


def compared(real: Tensor, corrupted: Tensor, seed: int = 0) -> Comparison:
    """Scores of structures against those of the same ones corrupted.

    Args:
        real, corrupted: In nats, shape (B,); NaN where there is none.
        seed: The resamples are a function of it.
    """
    # Both −∞ is no difference that is known.
    differences = corrupted.double() - real.double()
    is_lower = (differences < 0).double() + 0.5 * (differences == 0)
    lower = typical(torch.where(differences.isnan(), differences, is_lower), seed)
    return Comparison(typical(differences, seed), lower, auroc(real, corrupted, seed), differences)


def auroc(real: Tensor, corrupted: Tensor, seed: int = 0) -> Estimate:
    r"""Area under the ROC curve, :math:`P(s > s') + \tfrac12 P(s = s')` for a real score `s`.

    Structures are resampled with their corrupted forms.

    Args:
        real, corrupted: Scores, shape (B,); pairs with a NaN are left out.
        seed: The resamples are a function of it.

    >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 3.0])).value
    0.625
    """
    known = ~(real.isnan() | corrupted.isnan())
    missing = int((~known).sum())
    a, b = real[known].double(), corrupted[known].double()
    if not len(a):
        return nothing(missing)
    values = [
        _auroc(a[some], b[some])
        for chosen in resampled(len(a), seed)
        for some in chosen.split(RESAMPLES_AT_ONCE)
    ]
    value = float(_auroc(a.unsqueeze(0), b.unsqueeze(0)))
    return Estimate(value, *interval(torch.cat(values)), len(a), missing)


def _auroc(real: Tensor, corrupted: Tensor) -> Tensor:
    """Of each row of scores, (R, B) to (R,)."""
    ordered = real.sort(1).values
    below = torch.searchsorted(ordered, corrupted.contiguous())
    up_to = torch.searchsorted(ordered, corrupted.contiguous(), right=True)
    return 1 - (below + up_to).double().mean(1) / (2 * real.shape[1])


def _scored(score: Callable[[Clouds], Tensor], clouds: Clouds) -> Tensor:
    found = score(clouds).detach().cpu().double()
    if found.shape != (len(clouds),):
        raise ShapeError(
            f"score: found shape {tuple(found.shape)}, expected ({len(clouds)},): one number a "
            "structure."
        )
    return found


def _one_of_each(clouds: Clouds, source: torch.Generator) -> Tensor:
    """A row of each structure, shape (B,)."""
    share = torch.rand(len(clouds), generator=source, dtype=torch.float64)
    return clouds.ptr[:-1] + (share * clouds.sizes).long().clamp(max=clouds.sizes - 1)


def _changed(clouds: Clouds, corrupted: Clouds) -> Tensor:
    """Which structures differ at all, shape (B,)."""
    differs = (clouds.x != corrupted.x).any(1)
    for one, other in ((clouds.numbers, corrupted.numbers), (clouds.charges, corrupted.charges)):
        if one is not None and other is not None:
            differs = differs | (one != other)
    return clouds.segments.sum(differs.double()) > 0
