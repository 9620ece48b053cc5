r"""A backbone conjugated by elements of a group, :math:`\rho_2(g)\, \Phi(\rho_1(g)^{-1} x)`.

An element is an orthogonal matrix R, a permutation p, or both: its inverse takes a cloud to the
points `Rᵀ x_p(i)`. Many elements are one call of the backbone, the batch repeated for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow.errors import ShapeError
from eqflow.geometry import Segments
from eqflow.geometry.representations import Representation
from eqflow.nn.averaging.features import Backbone
from eqflow.nn.averaging.outputs import checked_output
from eqflow.nn.averaging.precision import without_autocast


class Batch(NamedTuple):
    """What a backbone is called with.

    Attributes:
        x: Positions relative to the point that the elements turn about, shape (N, d).
        clouds: The points of each of B clouds.
        h: Features of the points, shape (N, …), or None.
    """

    x: Tensor
    clouds: Segments
    h: Tensor | None


class Elements(NamedTuple):
    """E elements, and how they move features and outputs.

    Attributes:
        matrices: Shape (E, d, d), float64, or None for the identity.
        permutations: Shape (E, n), int64, or None for the identity.
        features: How the features of a point move.
        output: How the output of the backbone moves.
    """

    matrices: Tensor | None
    permutations: Tensor | None
    features: Representation
    output: Representation

    @property
    def number(self) -> int:
        """E."""
        given = [part for part in self[:2] if part is not None]
        return len(given[0]) if given else 1


def moved_outputs(
    backbone: Backbone, batch: Batch, elements: Elements, rows: int, where: str
) -> Iterator[Tensor]:
    """Outputs of the backbone for some elements at a time, conjugated by each.

    Args:
        rows: Most points in one call of the backbone; the points of the batch where it has more.
        where: Who called, the start of an error message.

    Yields:
        Shape (E, M, k), with M the number of points or of clouds.

    Raises:
        ShapeError: If the backbone's output does not fit, or a permutation does not fit a cloud.
        UsageError: If the backbone's output is no tensor of floating-point numbers.
    """
    x, clouds, h = batch
    places = _places(elements.permutations, clouds, where)
    count = elements.number
    step = max(1, rows // max(1, clouds.rows))
    for start in range(0, count, step):
        here = slice(start, min(start + step, count))
        repeats = here.stop - start
        repeated = Segments.of_lengths(clouds.lengths.repeat(repeats))
        index = None if places is None else places[0][here]
        with without_autocast(x.device.type):
            moved = _carried(x, _at(elements.matrices, here, x), index, repeats)
            features = None
            if h is not None:
                features = _carried(h, _acting(elements, "features", here, h), index, repeats)
        returned = backbone(moved, repeated.ptr, features)
        values = checked_output(returned, repeated.rows, repeated.count, elements.output, where)
        values = values.to(torch.promote_types(values.dtype, x.dtype))
        values = values.reshape(repeats, values.shape[0] // repeats, values.shape[1])
        if places is not None and values.shape[1] == clouds.rows:
            values = values.take_along_dim(places[1][here].unsqueeze(-1), 1)
        with without_autocast(x.device.type):
            matrix = _acting(elements, "output", here, values)
            if matrix is not None:
                values = torch.einsum("gij,gmj->gmi", matrix, values)
        yield values


def _at(matrices: Tensor | None, here: slice, like: Tensor) -> Tensor | None:
    """Some of the matrices, as `like` is; made in float64, whatever that is."""
    return None if matrices is None else matrices[here].to(like)


def _acting(elements: Elements, what: str, here: slice, like: Tensor) -> Tensor | None:
    """Matrices `D(R)` of the features or the output, None for the identity."""
    kind = getattr(elements, what)
    if kind.matrices is None or elements.matrices is None:
        return None
    return kind.matrices(elements.matrices[here]).to(like)


def _carried(values: Tensor, matrix: Tensor | None, index: Tensor | None, repeats: int) -> Tensor:
    """Rows moved by the inverse of each of E elements, (N, …) to (E N, …)."""
    if index is not None:
        values = values[index]
    elif matrix is None:
        return values.repeat(repeats, *[1] * (values.dim() - 1))
    else:
        values = values.unsqueeze(0).expand(repeats, *values.shape)
    if matrix is not None:
        # The inverse of an orthogonal matrix is its transpose, and points are rows.
        values = torch.einsum("gni,gij->gnj", values, matrix)
    return values.flatten(0, 1)


def _places(
    permutations: Tensor | None, clouds: Segments, where: str
) -> tuple[Tensor, Tensor] | None:
    """The rows that a permutation and its inverse bring each row to, (E, N) both."""
    if permutations is None:
        return None
    points = permutations.shape[1]
    wrong = clouds.lengths != points
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ShapeError(
            f"{where}: cloud {first} has {int(clouds.lengths[first])} points, expected {points}, "
            "the number that the permutations of the group reorder."
        )
    permutations = permutations.to(clouds.ptr.device)
    starts = clouds.expand(clouds.ptr[:-1])
    forth, back = (
        each[:, clouds.place] + starts for each in (permutations, permutations.argsort(1))
    )
    return forth, back
