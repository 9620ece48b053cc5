"""The one table of tolerances: how far two ways to compute one number may differ, relatively."""

from __future__ import annotations

import torch

from eqflow.errors import UsageError

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def tolerance_of(dtype: torch.dtype) -> float:
    """The relative error that rounding may cause in a computation in `dtype`.

    Raises:
        UsageError: If the table has no entry for it.
    """
    if dtype not in TOLERANCE:
        raise UsageError(
            f"tolerance: found positions of {dtype}, expected one of "
            f"{', '.join(map(str, TOLERANCE))}. Pass tolerance=… for another type."
        )
    return TOLERANCE[dtype]
