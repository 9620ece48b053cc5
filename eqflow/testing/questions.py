"""One function asked for its symmetry on one cloud after another: whatever it does is a row."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation
from eqflow.testing.continuity import Continuity, continuity_of
from eqflow.testing.equivariance import missed
from eqflow.testing.independence import errors_beside
from eqflow.testing.mirror import Chirality, chirality_of
from eqflow.testing.motions import KINDS, Motion, factors, random_motions
from eqflow.testing.outputs import CloudFunction, Output, evaluate, scale
from eqflow.testing.report import WORDS, Row
from eqflow.testing.scaling import Scaling, scaling_of


@dataclass(frozen=True)
class Question:
    """What is asked of every cloud.

    Attributes:
        fn: The function, in the arithmetic it is measured in.
        kind: How its output moves.
        tolerance: Largest error allowed.
        dtype: Name of the arithmetic.
        seed: Motions and perturbations are functions of it.
        motions: How many of each kind.
    """

    fn: CloudFunction
    kind: Representation
    tolerance: float
    dtype: str
    seed: int
    motions: int

    def rows(self, name: str, batch: Clouds, groups: Sequence[str]) -> Iterator[Row]:
        """All that is asked about one batch; what `fn` raises ends a group and no more."""
        try:
            still = evaluate(self.fn, batch, self.kind)
            size = scale(self.fn, still, self.kind)
        except Exception as error:  # whatever it is, it belongs to this cloud alone
            for group in groups:
                kinds = [WORDS[group].kind] if group in WORDS else _kinds(group, batch.dimension)
                yield from (self._raised(name, batch, group, each, error) for each in kinds)
            return
        for group in groups:
            if group not in WORDS:
                yield from self._moved(name, still, size, group)
                continue
            try:
                yield self._measured(name, still, size, group)
            except Exception as error:
                yield self._raised(name, batch, group, WORDS[group].kind, error)

    def _moved(self, name: str, still: Output, size: Tensor, group: str) -> Iterator[Row]:
        """A row for each kind of motion of a group; what raises ends its kind and no more."""
        motions: dict[str, list[Motion]] = {}
        for motion in random_motions(still.batch, group, self.seed, self.motions):
            motions.setdefault(motion.kind, []).append(motion)
        for each, moves in motions.items():
            try:
                errors = torch.stack([missed(self.fn, still, self.kind, move) for move in moves])
                yield self._row(name, still.batch, group, each, errors.amax(0) / size)
            except Exception as error:
                yield self._raised(name, still.batch, group, each, error)

    def _measured(self, name: str, still: Output, size: Tensor, word: str) -> Row:
        """The row of a word that is no group."""
        fn, kind, bound, batch = self.fn, self.kind, self.tolerance, still.batch
        what = WORDS[word]
        if word == "batch":
            errors = torch.tensor(errors_beside(fn, still, kind, size), dtype=torch.float64)
            return self._row(name, batch, word, what.kind, errors)
        found: Chirality | Scaling | Continuity
        if word == "mirror":
            found = chirality_of(fn, still, kind, size, bound, self.seed, self.motions)
            error = found.mirrored
        elif word == "scale":
            found = scaling_of(fn, still, kind, size, bound)
            error = found.error
        else:
            found = continuity_of(fn, still, kind, size, bound, seed=self.seed)
            error = found.jump
        allowed = None if what.is_information else bound
        where, points = _where(name, batch, found.cloud)
        return Row(where, word, what.kind, error, allowed, self.dtype, points, str(found))

    def _row(self, name: str, batch: Clouds, group: str, kind: str, errors: Tensor) -> Row:
        if not len(batch):
            return Row(name, group, kind, 0.0, self.tolerance, self.dtype, note="no clouds")
        cloud = int(errors.argmax())
        error = float(errors[cloud])
        note = "the output is not finite" if error == float("inf") else ""
        where, points = _where(name, batch, cloud)
        return Row(where, group, kind, error, self.tolerance, self.dtype, points, note)

    def _raised(self, name: str, batch: Clouds, group: str, kind: str, error: Exception) -> Row:
        """What could not be measured; of information, as information."""
        first = (str(error).strip().splitlines() or [""])[0]
        note = f"raised: {type(error).__name__}: {first}".rstrip(": ")
        is_information = group in WORDS and WORDS[group].is_information
        bound = None if is_information else self.tolerance
        points = int(batch.sizes.max()) if len(batch) else 0
        return Row(name, group, kind, float("inf"), bound, self.dtype, points, note)


def in_dtype(fn: CloudFunction, dtype: torch.dtype) -> CloudFunction:
    """A module, or a method of one, whose parameters have `dtype`: a copy where they have not.

    Any other function is given back as it is.
    """
    if isinstance(fn, nn.Module):
        tensors = [*fn.parameters(), *fn.buffers()]
        floats = [each for each in tensors if each.is_floating_point()]
        return fn if all(t.dtype == dtype for t in floats) else copy.deepcopy(fn).to(dtype)
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, nn.Module):
        return getattr(in_dtype(owner, dtype), fn.__name__)
    return fn


def device_of(fn: CloudFunction) -> torch.device | None:
    """Where a module is, or that of a method; None of any other function, and of an empty one."""
    owner = fn if isinstance(fn, nn.Module) else getattr(fn, "__self__", None)
    if not isinstance(owner, nn.Module):
        return None
    return next((each.device for each in [*owner.parameters(), *owner.buffers()]), None)


def _where(name: str, batch: Clouds, cloud: int) -> tuple[str, int]:
    if not len(batch):
        return name, 0
    return (f"{name}[{cloud}]" if len(batch) > 1 else name), int(batch.sizes[cloud])


def _kinds(group: str, dimension: int) -> list[str]:
    return [kind for family in factors(group, dimension) for kind in KINDS[family]]
