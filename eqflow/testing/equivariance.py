r"""The error of `f(g x) = ρ(g) f(x)`, and assertions that it is rounding.

For each random motion `g` and each cloud: :math:`\max_i \lVert f(g x)_i - ρ(g) f(x)_i \rVert`,
divided by the size of that cloud's output (`eqflow.testing.outputs.scale`). The error of a function
is the largest of these, and infinite where an output is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from eqflow.errors import ShapeError
from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation, representation
from eqflow.testing.motions import Motion, random_motions
from eqflow.testing.outputs import CloudFunction, Output, evaluate, scale
from eqflow.testing.tolerances import tolerance_of

if TYPE_CHECKING:
    import e3nn.o3


@dataclass(frozen=True)
class Discrepancy:
    """The worst case among the motions of one kind.

    Attributes:
        kind: Kind of motion: translation, rotation, reflection, combined or permutation.
        error: Relative error; infinite where an output was not finite.
        cloud: The cloud of the batch it was found in.
    """

    kind: str
    error: float
    cloud: int


def discrepancies(
    fn: CloudFunction,
    batch: Clouds,
    group: str = "E(3)",
    output: str | e3nn.o3.Irreps = "vector",
    seed: int = 0,
    motions: int = 3,
) -> list[Discrepancy]:
    """The worst error for each kind of motion in `group`; arguments as in `equivariance_error`."""
    kind = representation(output, batch.dimension)
    moves = list(random_motions(batch, group, seed, motions))
    still = evaluate(fn, batch, kind)
    size = scale(fn, still, kind)
    worst: dict[str, Discrepancy] = {}
    for motion in moves:
        errors = missed(fn, still, kind, motion) / size
        cloud = int(errors.argmax()) if len(batch) else 0
        found = Discrepancy(motion.kind, float(errors[cloud]) if len(batch) else 0.0, cloud)
        if motion.kind not in worst or found.error > worst[motion.kind].error:
            worst[motion.kind] = found
    return list(worst.values())


def missed(fn: CloudFunction, still: Output, kind: Representation, motion: Motion) -> Tensor:
    """Largest `‖f(g x)_i − ρ(g) f(x)_i‖` of each cloud, (B,); infinite where not finite.

    Args:
        fn: As in `equivariance_error`.
        still: What it returned for the clouds where they are, `f(x)`.
        kind: How the output moves, `ρ`.
        motion: An element `g` for each cloud.

    Raises:
        ShapeError: If `fn` returns a row a point for one and a row a cloud for the other.
    """
    moved = evaluate(fn, motion.apply(still.batch), kind)
    if moved.values.shape != still.values.shape:
        raise ShapeError(
            f"fn: returned shape {tuple(still.values.shape)} for clouds and "
            f"{tuple(moved.values.shape)} for the same clouds moved; expected one shape."
        )
    expected = kind.act(still.values, motion.rotation, motion.translation, still.cloud)
    if still.has_row_per_point:
        expected = expected[motion.order]
    return still.largest(moved.values - expected)


def equivariance_error(
    fn: CloudFunction,
    batch: Clouds,
    group: str = "E(3)",
    output: str | e3nn.o3.Irreps = "vector",
    seed: int = 0,
    motions: int = 3,
) -> float:
    """Relative error of `f(g x) = ρ(g) f(x)`, the worst over random motions and over clouds.

    Args:
        fn: `fn(x, ptr, h)` with `x` (N, d), `ptr` (B + 1,) and `h` (N, 1) of `batch`; returns a row
            a point, (N, k), or a row a cloud, (B, k) or (B,).
        batch: Clouds to try it on; each is moved by an element of its own.
        group: `"E(d)"`, `"SE(d)"`, `"O(d)"`, `"SO(d)"`, `"T(d)"` with a number for d, or `"S(n)"`,
            which reorders points: a row a point must follow, a row a cloud must stay; or a product
            with it, `"E(3)×S(n)"`.
        output: How the output moves: `"scalar"`, `"vector"`, `"point"`, `"tensor(2)"` of any order,
            or irreps of e3nn.
        seed: The motions are a function of it.
        motions: How many of each kind.

    Returns:
        The error, in units of the size of a cloud's output; infinite where one is not finite.

    Raises:
        UsageError: If there is no such group or output.
        ShapeError: If the group's dimension is not the clouds', or `fn` returns another shape.

    >>> from eqflow.testing import clouds
    >>> batch = dict(clouds())["water"]
    >>> equivariance_error(lambda x, ptr, h: x, batch, output="point") < 1e-14
    True
    >>> equivariance_error(lambda x, ptr, h: x, batch, output="vector") > 0.1
    True
    """
    found = discrepancies(fn, batch, group, output, seed, motions)
    return max(entry.error for entry in found)


def assert_equivariant(
    fn: CloudFunction,
    batch: Clouds,
    group: str = "E(3)",
    output: str | e3nn.o3.Irreps = "vector",
    seed: int = 0,
    motions: int = 3,
    tolerance: float | None = None,
) -> None:
    """Fail where `fn` is not equivariant; arguments as in `equivariance_error`.

    Args:
        tolerance: Largest error allowed; by default that of the dtype in `TOLERANCE`.

    Raises:
        AssertionError: If the error is larger; names the kinds of motion and the worst cloud.
    """
    bound = tolerance_of(batch.x.dtype) if tolerance is None else tolerance
    found = discrepancies(fn, batch, group, output, seed, motions)
    worst = max(found, key=lambda entry: entry.error)
    if worst.error <= bound:
        return
    source = f", from {batch.source[worst.cloud]}" if batch.source else ""
    property_ = "invariance" if output == "scalar" else "equivariance"
    lines = [
        f"{property_} under {group} of a {str(output)!r} output: "
        f"error {worst.error:.2g}, tolerance {bound:.2g} for {batch.x.dtype}",
        *(f"  {entry.kind:<12} {entry.error:.2g}" for entry in found),
        f"  worst: {worst.kind} of cloud {worst.cloud} "
        f"({int(batch.sizes[worst.cloud])} points{source}), seed {seed}",
    ]
    if worst.error == float("inf"):
        lines.append("  the output is not finite (NaN or ∞) there")
    raise AssertionError("\n".join(lines))


def assert_invariant(
    fn: CloudFunction,
    batch: Clouds,
    group: str = "E(3)",
    seed: int = 0,
    motions: int = 3,
    tolerance: float | None = None,
) -> None:
    """Fail where the output of `fn` moves: `assert_equivariant` for a `"scalar"` output."""
    assert_equivariant(fn, batch, group, "scalar", seed, motions, tolerance)
