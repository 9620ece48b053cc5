"""What an average is made of and called with, checked: a backbone, positions and features."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.geometry import Segments
from eqflow.geometry.representations import Representation


def require_callable(backbone: Any, where: str, call: str = "backbone(x, ptr, h)") -> None:
    """Refuse a backbone that cannot be called.

    Args:
        backbone: What was handed over as one.
        where: Who asks, the start of the error message.
        call: How it will be called.

    Raises:
        UsageError: That says what is expected.
    """
    if not callable(backbone) or isinstance(backbone, type):
        raise UsageError(
            f"{where}: found {backbone!r} as the backbone, expected a function or module {call}."
        )


def checked_input(
    x: Tensor,
    ptr: Tensor | Segments,
    h: Tensor | None,
    dimension: int,
    features: Representation,
    where: str,
) -> Segments:
    """The clouds of a batch whose positions and features can be moved.

    Args:
        x: Positions, shape (N, d).
        ptr: Start of each cloud, shape (B + 1,).
        h: Features of points, shape (N, F), or None; of any type where they are invariant.
        dimension: The d that is expected.
        features: How the features move.
        where: Who called, the start of an error message.

    Raises:
        ShapeError: If a shape does not fit the others, something is no tensor, or positions are no
            floating-point numbers.
        DataError: If a position or a feature is NaN or infinite; the message names the cloud.
    """
    _require_tensors(x, ptr, h, where)
    if x.dim() != 2 or x.shape[1] != dimension or not x.is_floating_point():
        raise ShapeError(
            f"{where}: found positions of shape {tuple(x.shape)} and {x.dtype}, expected "
            f"(N, {dimension}) of floating-point numbers, as the group acts in {dimension} "
            "dimensions. Choose the group of the dimension of your clouds."
        )
    clouds = Segments.of(ptr)
    if clouds.rows != x.shape[0]:
        raise ShapeError(
            f"{where}: ptr ends at {clouds.rows}, expected the number of positions, {x.shape[0]}."
        )
    if h is not None and (h.dim() < 2 or h.shape[0] != x.shape[0]):
        raise ShapeError(
            f"{where}: found features of shape {tuple(h.shape)}, expected ({x.shape[0]}, F), a row "
            "for each point."
        )
    if features.columns is not None or features.matrices is not None:
        found = "none" if h is None else f"shape {tuple(h.shape)} of {h.dtype}"
        if h is None or h.dim() != 2 or h.shape[1] != features.columns or not h.is_floating_point():
            raise ShapeError(
                f"{where}: found features of {found}, expected shape ({x.shape[0]}, "
                f"{features.columns}) of floating-point numbers, as features={features.name!r} "
                "asks for."
            )
    _require_finite("position", x, clouds, where)
    if h is not None:
        _require_finite("feature row", h, clouds, where)
    return clouds


def _require_tensors(x: Any, ptr: Any, h: Any, where: str) -> None:
    wrong = [
        f"{name} of type {type(value).__name__}"
        for name, value, fits in (
            ("x", x, isinstance(x, Tensor)),
            ("ptr", ptr, isinstance(ptr, Tensor | Segments)),
            ("h", h, h is None or isinstance(h, Tensor)),
        )
        if not fits
    ]
    if wrong:
        raise ShapeError(
            f"{where}: found {', '.join(wrong)}, expected tensors (x, ptr, h may be None). Convert "
            "with torch.as_tensor."
        )


def _require_finite(what: str, values: Tensor, clouds: Segments, where: str) -> None:
    wrong = ~values.detach().isfinite().flatten(1).all(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"{where}: {what} {values[row].tolist()} of point {row}, in cloud "
            f"{int(clouds.ids[row])}, is not finite. Leave such clouds out before they reach the "
            "model."
        )
