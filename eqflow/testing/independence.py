"""The error of batch independence: a cloud gives the same output alone as among others."""

from __future__ import annotations

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
    return max(_errors(fn, batch), default=0.0)


def assert_independent(fn: CloudFunction, batch: Clouds, tolerance: float | None = None) -> None:
    """Fail where the output for one cloud depends on the others in its batch.

    Args:
        tolerance: Largest error allowed; by default that of the dtype in `TOLERANCE`.

    Raises:
        AssertionError: If the error is larger; names the worst cloud.
    """
    bound = tolerance_of(batch.x.dtype) if tolerance is None else tolerance
    errors = _errors(fn, batch)
    error = max(errors, default=0.0)
    if error <= bound:
        return
    cloud = errors.index(error)
    source = f", from {batch.source[cloud]}" if batch.source else ""
    raise AssertionError(
        f"independence of the clouds of a batch: error {error:.2g}, tolerance {bound:.2g} for "
        f"{batch.x.dtype}\n  worst: cloud {cloud} ({int(batch.sizes[cloud])} points{source})"
    )


def _errors(fn: CloudFunction, batch: Clouds) -> list[float]:
    kind = Representation("scalar")
    together = evaluate(fn, batch, kind)
    errors = []
    for index, cloud in enumerate(batch):
        alone = evaluate(fn, cloud, kind)
        rows = Output(together.values[together.cloud == index], cloud)
        difference = alone.largest(alone.values - rows.values) / scale(fn, alone, kind)
        errors.append(float(difference))
    return errors
