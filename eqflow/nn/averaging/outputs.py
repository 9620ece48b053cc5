"""What a backbone returned, checked: a row a point or a row a cloud, in the declared columns."""

from __future__ import annotations

from torch import Tensor

from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments
from eqflow.geometry.representations import Representation


def checked_output(
    values: object, points: int, clouds: int, kind: Representation, where: str
) -> Tensor:
    """`values` as rows (M, k), with M = `points` or `clouds` and k columns that fit `kind`.

    Args:
        values: What the backbone returned; a vector (M,) counts as one column where that fits.
        points: Number of points N that the backbone was given.
        clouds: Number of clouds B that it was given.
        kind: How the rows are to move.
        where: Who called, the start of an error message.

    Returns:
        Shape (M, k), in the dtype and on the device that the backbone chose.

    Raises:
        UsageError: If `values` is not a tensor of real floating-point numbers.
        ShapeError: If its shape does not fit; the message names both shapes.

    >>> import torch
    >>> from eqflow.geometry.representations import representation
    >>> checked_output(torch.zeros(5), 5, 2, representation("scalar", 3), "energy").shape
    torch.Size([5, 1])
    """
    if not isinstance(values, Tensor):
        raise UsageError(
            f"{where}: the backbone returned a {type(values).__name__}, expected a tensor."
        )
    if not values.is_floating_point():
        raise UsageError(
            f"{where}: the backbone returned {values.dtype}, and averages are taken of real "
            "floating-point numbers. Convert its output, for example with .to(x.dtype)."
        )
    rows = values.unsqueeze(-1) if values.dim() == 1 and kind.columns in (None, 1) else values
    if (
        rows.dim() != 2
        or rows.shape[0] not in (points, clouds)
        or kind.columns not in (None, rows.shape[1])
    ):
        columns = "k" if kind.columns is None else kind.columns
        raise ShapeError(
            f"{where}: the backbone returned shape {tuple(values.shape)} for {points} points in "
            f"{clouds} clouds, expected ({points}, {columns}) or ({clouds}, {columns}), as output "
            f"{kind.name!r} asks for. Change the backbone or output=…."
        )
    return rows


def owner_of_rows(rows: int, segments: Segments) -> Tensor:
    """The cloud that each of a backbone's rows belongs to, shape (M,).

    Where there are as many points as clouds, the rows are those of the points. That makes no
    difference where every cloud is one point.
    """
    if rows == segments.rows:
        return segments.ids
    return segments.ids.new_tensor(range(segments.count))
