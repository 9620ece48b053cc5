"""`symmetry_report`: the symmetry of any function of clouds, on every cloud, in one line.

What is asked for is a group of motions or one of four words: `"batch"`, a cloud alone and beside
another; `"continuity"`; and `"mirror"` and `"scale"`, which are reported and never fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Clouds
from eqflow.geometry.representations import representation
from eqflow.testing.motions import factors
from eqflow.testing.outputs import CloudFunction
from eqflow.testing.questions import Question, device_of, in_dtype
from eqflow.testing.report import WORDS, Row, SymmetryReport
from eqflow.testing.shapes import clouds as named_clouds
from eqflow.testing.tolerances import tolerance_of

if TYPE_CHECKING:
    import e3nn.o3

NamedClouds = Mapping[str, Clouds] | Iterable[tuple[str, Clouds]] | Clouds
Loader = Callable[[str | Path], CloudFunction]

DTYPES = (torch.float64, torch.float32)


def symmetry_report(
    fn: CloudFunction | str | Path,
    groups: str | Sequence[str] | None = None,
    output: str | e3nn.o3.Irreps = "vector",
    clouds: NamedClouds | None = None,
    *,
    dimension: int = 3,
    dtypes: Sequence[torch.dtype] = DTYPES,
    tolerance: float | Mapping[torch.dtype, float] | None = None,
    seed: int = 0,
    motions: int = 3,
    loader: Loader | None = None,
    name: str | None = None,
) -> SymmetryReport:
    """Measure the symmetry of a function on every cloud; print what comes back.

    Nothing that `fn` does on a cloud ends the report: an output that is not finite, or an error
    raised, is a row with an infinite error.

    Args:
        fn: `fn(x, ptr, h)` as in `equivariance_error`. A module is measured where it is, training
            or not, and for each dtype by a copy that has it. A run folder, or its weights, is the
            velocity of its flow at the middle of its way, `eqflow.evaluate.symmetry.CloudVelocity`.
            A method `symmetry_clouds(dtype)`, if it has one, gives the clouds that it takes.
        groups: Any of `"E(d)"`, `"SE(d)"`, `"O(d)"`, `"SO(d)"`, `"T(d)"`, `"S(n)"`, products such
            as `"E(3)×S(n)"`, and the words `"batch"`, `"mirror"`, `"scale"`, `"continuity"`; by
            default E(d), S(n), batch, mirror and scale.
        output: `"scalar"`, `"vector"`, `"point"`, `"tensor(2)"` of any order, or irreps of e3nn.
        clouds: Clouds by name, or one batch of them; by default `eqflow.testing.clouds()`.
        dimension: Of those by default; clouds that are given have their own.
        dtypes: Arithmetic to measure in.
        tolerance: Largest error allowed, or one for each dtype; by default `TOLERANCE`.
        seed: Motions and perturbations are functions of it.
        motions: How many of each kind.
        loader: How to make a function of a path, such as `lambda run: model_of(run).forward`.
        name: What the report calls the function.

    Raises:
        UsageError: If there is no such group, word, output or cloud, no dtype, or another argument
            is wrong.
        ShapeError: If a group acts in another dimension than that of the clouds.
        CheckpointError: If a run is none.

    >>> from eqflow.geometry import centred
    >>> report = symmetry_report(lambda x, ptr, h: centred(x, ptr), "E(3)×S(n)", motions=1)
    >>> report.holds, len(report.lines)
    (True, 10)
    """
    shown = name if name is not None else _name(fn)
    if isinstance(fn, str | Path) and loader is not None:
        fn = loader(fn)
    if isinstance(fn, str | Path):
        # Doors to the house above, opened only for a run.
        from eqflow.evaluate.symmetry import CloudVelocity
        from eqflow.train.weights import load

        fn = CloudVelocity(load(fn)).eval()
    # What is trained on some elements says itself which clouds it takes.
    batches: Callable[[torch.dtype], Iterable[tuple[str, Clouds]]] | None
    batches = getattr(fn, "symmetry_clouds", None)
    if not callable(fn):
        raise UsageError(
            f"fn: found a {type(fn).__name__}, expected fn(x, ptr, h), a module or a run folder."
        )
    if clouds is not None:
        given = _given(clouds)
        batches = lambda dtype: [(each, batch.to(dtype)) for each, batch in given]  # noqa: E731
    if batches is not None:
        dimension = next(iter(batches(torch.float64)))[1].dimension
    if not isinstance(motions, int) or isinstance(motions, bool) or motions < 1:
        raise UsageError(f"motions: found {motions!r}, expected a whole number, at least 1.")
    dtypes = _types(dtypes)
    chosen = _chosen(groups, dimension)
    kind = representation(output, dimension)
    bounds = [_bound(tolerance, dtype) for dtype in dtypes]
    rows: list[Row] = []
    for dtype, bound in zip(dtypes, bounds, strict=True):
        typed, arithmetic = in_dtype(fn, dtype), str(dtype).split(".")[-1]
        asked = Question(typed, kind, bound, arithmetic, seed, motions)
        device = device_of(typed)
        found = named_clouds(dimension, dtype) if batches is None else batches(dtype)
        for each, batch in found:
            there = batch if device is None else batch.to(device)
            rows += asked.rows(each, there, chosen)
    return SymmetryReport(str(output), tuple(rows), shown)


def _chosen(groups: str | Sequence[str] | None, dimension: int) -> tuple[str, ...]:
    if groups is None:
        return (f"E({dimension})", "S(n)", "batch", "mirror", "scale")
    chosen = (groups,) if isinstance(groups, str) else _several(groups)
    if chosen is None or not all(isinstance(group, str) for group in chosen):
        raise UsageError(
            f"groups: found {groups!r}, expected a string or a sequence of them, such as "
            "['E(3)', 'batch']."
        )
    if not chosen:
        raise UsageError("groups: found none, expected at least one, such as 'E(3)×S(n)'.")
    for group in chosen:
        if group not in WORDS:
            try:
                factors(group, dimension)
            except ShapeError:
                raise
            except UsageError as error:
                words = ", ".join(map(repr, WORDS))
                raise UsageError(f"{error} Beside groups there are {words}.") from error
    return tuple(dict.fromkeys(chosen))


def _types(dtypes: Any) -> tuple[torch.dtype, ...]:
    found = _several(dtypes)
    if not found or not all(isinstance(dtype, torch.dtype) for dtype in found):
        raise UsageError(
            f"dtypes: found {dtypes!r}, expected a sequence of at least one torch.dtype, such as "
            "[torch.float64]."
        )
    return found


def _several(values: Any) -> tuple[Any, ...] | None:
    """The members of an iterable; None of anything else."""
    return tuple(values) if isinstance(values, Iterable) else None


def _given(clouds: NamedClouds) -> list[tuple[str, Clouds]]:
    if isinstance(clouds, Clouds):
        named = [("clouds", clouds)]
    elif isinstance(clouds, Mapping):
        named = list(clouds.items())
    else:
        named = list(clouds)
    for entry in named:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Clouds)):
            raise UsageError(
                f"clouds: found a {type(entry).__name__} among them, expected pairs of a name and "
                "Clouds, such as eqflow.testing.clouds(), a mapping of them, or Clouds alone."
            )
    if not named:
        raise UsageError("clouds: found none, expected at least one.")
    dimensions = sorted({batch.dimension for _, batch in named})
    if len(dimensions) > 1:
        raise UsageError(f"clouds: found dimensions {dimensions}, expected one for all.")
    return named


def _bound(tolerance: float | Mapping[torch.dtype, float] | None, dtype: torch.dtype) -> float:
    if isinstance(tolerance, Mapping):
        strangers = [key for key in tolerance if not isinstance(key, torch.dtype)]
        if strangers:
            raise UsageError(
                f"tolerance: found the key {strangers[0]!r}, expected dtypes of torch."
            )
        bound = tolerance[dtype] if dtype in tolerance else tolerance_of(dtype)
    else:
        bound = tolerance_of(dtype) if tolerance is None else tolerance
    if not isinstance(bound, Real) or isinstance(bound, bool) or not bound >= 0:
        raise UsageError(
            f"tolerance: found {bound!r} for {dtype}, expected a number of at least 0, or one for "
            "each dtype."
        )
    return float(bound)


def _name(fn: CloudFunction | str | Path) -> str:
    if isinstance(fn, str | Path):
        return str(fn)
    return getattr(fn, "__qualname__", type(fn).__name__)
