"""The error of batch independence: a cloud gives the same output alone as among others."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.errors import ShapeError
from eqflow.geometry import Clouds
from eqflow.geometry.representations import Representation
from eqflow.testing.outputs import CloudFunction, Output, evaluate, scale
from eqflow.testing.tolerances import tolerance_of


def independence_error(fn: CloudFunction, batch: Clouds) -> float:
    """Relative difference between a cloud's output in `batch` and alone, the worst over clouds.

    Args:
        fn: As in `eqflow.testing.equivariance_error`.
        batch: At least two clouds, or the error is 0 for any function.

    Returns:
        The error, in units of the size of a cloud's output; infinite where one is not finite.
    """
    return max(independence_errors(fn, batch), default=0.0)


def assert_independent(fn: CloudFunction, batch: Clouds, tolerance: float | None = None) -> None:
    """Fail where the output for one cloud depends on the others in its batch.

    Args:
        tolerance: Largest error allowed; by default that of the dtype in `TOLERANCE`.

    Raises:
        AssertionError: If the error is larger; names the worst cloud.
    """
    bound = tolerance_of(batch.x.dtype) if tolerance is None else tolerance
    errors = independence_errors(fn, batch)
    error = max(errors, default=0.0)
    if error <= bound:
        return
    cloud = errors.index(error)
    source = f", from {batch.source[cloud]}" if batch.source else ""
    raise AssertionError(
        f"independence of the clouds of a batch: error {error:.2g}, tolerance {bound:.2g} for "
        f"{batch.x.dtype}\n  worst: cloud {cloud} ({int(batch.sizes[cloud])} points{source})"
    )


def errors_beside(
    fn: CloudFunction, still: Output, kind: Representation, size: Tensor
) -> list[float]:
    """Relative difference between each cloud's output in its batch and beside one more, (B,).

    What stands beside is the first cloud, enlarged and moved away: whoever takes a mean or a
    largest value over all points of a batch sees it.

    Args:
        fn: As in `eqflow.testing.equivariance_error`.
        still: What it returned for the batch.
        kind: How the output moves.
        size: What an error in each cloud's output is measured by, (B,).
    """
    batch = still.batch
    if not len(batch):
        return []
    other = batch[:1]
    other = other.with_positions(3 * other.x + 1)
    worst = torch.zeros_like(size)
    for parts, place in (([other, batch], 1), ([batch, other], 0)):
        both = evaluate(fn, Clouds.join(parts), kind)
        beside = len(other.x) if still.has_row_per_point else 1
        if len(both.values) != len(still.values) + beside:
            raise ShapeError(
                f"fn: returned {len(still.values)} rows for {len(batch)} clouds, and "
                f"{len(both.values)} with one of {len(other.x)} points beside; expected "
                f"{len(still.values) + beside}."
            )
        start = beside * place
        rows = both.values[start : start + len(still.values)]
        worst = worst.maximum(still.largest(rows - still.values) / size)
    return worst.tolist()


def independence_errors(fn: CloudFunction, batch: Clouds) -> list[float]:
    """As `independence_error`, of each cloud."""
    kind = Representation("scalar")
    together = evaluate(fn, batch, kind)
    errors = []
    for index, cloud in enumerate(batch):
        alone = evaluate(fn, cloud, kind)
        rows = Output(together.values[together.cloud == index], cloud)
        difference = alone.largest(alone.values - rows.values) / scale(fn, alone, kind)
        errors.append(float(difference))
    return errors
