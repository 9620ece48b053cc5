r"""Averaging networks of images over quarter turns and mirrors, without interpolation.

The square grid is its own image under the group C(4) of quarter turns and D(4) with mirrors, so the
mean :math:`⟨Φ⟩(f) = |G|^{-1} \sum_g ρ_2(g)\, Φ(ρ_1(g)^{-1} f)` is exact: it moves pixels and weighs
none. For one convolution Φ with filter ψ the mean is the convolution with the mean filter. For a
filter, a pointwise nonlinearity and a pooling over the grid it is a group convolution, whose
filters are all :math:`ρ(g) ψ`, pooled over the group as well. Deeper group convolutions mix the
copies of a filter between layers; the mean of a deep Φ does not.

Axes: `x` to the right, along the width, `y` up, against the height; a quarter turn is
counterclockwise, as the image is seen with row 0 on top, and the mirror is `x ↦ −x`.

Reference: Group Equivariant Convolutional Networks (Cohen, Welling, 2016), arXiv:1602.07576,
section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.nn.arguments import require_counts
from eqflow.nn.averaging.inputs import require_callable
from eqflow.nn.averaging.named_groups import turn

# For each kind: whether it is an image, and whether its components turn.
KINDS = {
    "scalar": (False, False),
    "vector": (False, True),
    "image": (True, False),
    "vector_image": (True, True),
}
GROUPS = ("C(1)", "C(2)", "C(4)", "D(1)", "D(2)", "D(4)")

Element = tuple[int, bool]


class ImageGroupAverage(nn.Module):
    """A network of images averaged over the turns and mirrors of the square grid.

    Args:
        backbone: Images (B, C, H, W) to what `output` says; called with a batch repeated for many
            elements. Where height and width differ it is called with both orders of them.
        group: `"C(4)"` for quarter turns, `"D(4)"` for those and mirrors, or their subgroups
            `"C(2)"`, `"D(2)"` (half-turns, and mirrors along both axes), `"D(1)"` (one mirror).
        output: `"scalar"`, shape (B, k), no change; `"vector"`, (B, 2 k), the pair of columns
            `2 j, 2 j + 1` turns as (x, y); `"image"`, (B, k, H', W'), turns as the input does;
            `"vector_image"`, (B, 2 k, H', W'), its pairs of channels turn as well, as an optical
            flow does.
        channels: What the channels of the input are, `"image"` or `"vector_image"`.
        rows: Most images in one call of the backbone; the batch itself is not taken apart.

    Raises:
        UsageError: If there is no such group or output, the backbone cannot be called, or `rows`
            is no whole number above 0.

    Example:
        >>> import torch
        >>> from eqflow.nn.averaging import ImageGroupAverage
        >>> corner = lambda image: image[:, :, 0, 0]
        >>> model = ImageGroupAverage(corner, "C(4)", output="scalar")
        >>> model(torch.arange(9.0).reshape(1, 1, 3, 3))
        tensor([[4.]])
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Tensor],
        group: str = "C(4)",
        output: str = "scalar",
        channels: str = "image",
        *,
        rows: int = 4096,
    ) -> None:
        super().__init__()
        require_callable(backbone, "ImageGroupAverage", "backbone(image)")
        require_counts("ImageGroupAverage", rows=rows)
        self.backbone = backbone
        self.group = group
        self.elements = _elements(group)
        for where, kind, possible in (
            ("output", output, tuple(KINDS)),
            ("channels", channels, ("image", "vector_image")),
        ):
            if kind not in possible:
                raise UsageError(
                    f"{where}: found {kind!r}, expected one of {', '.join(map(repr, possible))}."
                )
        self.output = output
        self.channels = channels
        self.rows = rows

    def forward(self, image: Tensor) -> Tensor:
        """The mean over the group.

        Args:
            image: Shape (B, C, H, W), finite.

        Returns:
            What the backbone returns, of the shape that `output` says.

        Raises:
            ShapeError: If a shape does not fit, of the input or of what the backbone returns.
            UsageError: If the backbone returns no tensor of floating-point numbers.
            DataError: If a pixel is not finite.
        """
        self._check(image)
        outputs: list[Tensor] = []
        for elements in self._calls(image):
            moved = torch.cat([self._moved_back(image, element) for element in elements])
            values = self._checked(self.backbone(moved), len(moved))
            for element, part in zip(elements, values.chunk(len(elements)), strict=True):
                outputs.append(self._placed(part, element))
        shapes = sorted({tuple(output.shape) for output in outputs})
        if len(shapes) > 1:
            raise ShapeError(
                f"ImageGroupAverage: turned back, outputs have shapes {shapes[0]} and {shapes[1]}, "
                "expected the same. Make the backbone treat height and width alike."
            )
        return torch.stack(outputs).mean(0)

    def _calls(self, image: Tensor) -> list[list[Element]]:
        """Elements that go into one call: images of one shape, and not too many."""
        square = image.shape[2] == image.shape[3]
        alike = [
            [(turns, flips) for turns, flips in self.elements if square or turns % 2 == parity]
            for parity in ((0,) if square else (0, 1))
        ]
        step = max(1, self.rows // max(1, image.shape[0]))
        return [
            group[start : start + step] for group in alike for start in range(0, len(group), step)
        ]

    def _moved_back(self, image: Tensor, element: Element) -> Tensor:
        turns, flips = element
        image = torch.rot90(image, -turns, (2, 3))
        if flips:
            image = image.flip(3)
        if self.channels == "vector_image":
            image = _turned(image, _matrix(element).T)
        return image

    def _placed(self, values: Tensor, element: Element) -> Tensor:
        turns, flips = element
        is_image, turns_components = KINDS[self.output]
        if is_image:
            values = torch.rot90(values.flip(3) if flips else values, turns, (2, 3))
        return _turned(values, _matrix(element)) if turns_components else values

    def _check(self, image: Tensor) -> None:
        if not isinstance(image, Tensor):
            raise ShapeError(
                f"ImageGroupAverage: found an image of type {type(image).__name__}, expected a "
                "tensor (B, C, H, W). Convert it with torch.as_tensor."
            )
        pairs = self.channels == "vector_image"
        if image.dim() != 4 or not image.is_floating_point() or (pairs and image.shape[1] % 2):
            channels = "an even C" if pairs else "C"
            raise ShapeError(
                f"ImageGroupAverage: found images of shape {tuple(image.shape)} and {image.dtype}, "
                f"expected (B, {channels}, H, W) of floating-point numbers."
            )
        wrong = ~image.detach().isfinite().flatten(1).all(1)
        if bool(wrong.any()):
            raise DataError(
                f"ImageGroupAverage: image {int(wrong.nonzero()[0])} has a pixel that is not "
                "finite. Leave such images out before they reach the model."
            )

    def _checked(self, values: object, count: int) -> Tensor:
        if not isinstance(values, Tensor) or not values.is_floating_point():
            found = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"ImageGroupAverage: the backbone returned {found}, expected a tensor of real "
                "floating-point numbers."
            )
        is_image, turns_components = KINDS[self.output]
        fits = values.dim() == (4 if is_image else 2) and values.shape[0] == count
        if not fits or (turns_components and values.shape[1] % 2):
            columns = "2 k" if turns_components else "k"
            raise ShapeError(
                f"ImageGroupAverage: the backbone returned shape {tuple(values.shape)} for {count} "
                f"images, expected ({count}, {columns}{', H, W' if is_image else ''}), as output "
                f"{self.output!r} asks for. Change the backbone or output=…."
            )
        return values

    def extra_repr(self) -> str:
        """The group and how outputs move, for `print`."""
        return f"group={self.group!r}, output={self.output!r}, channels={self.channels!r}"


def _elements(group: str) -> list[Element]:
    """Quarter turns, and whether the mirror comes before them, of each element."""
    if group not in GROUPS:
        near = get_close_matches(str(group), GROUPS, n=2, cutoff=0.3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UsageError(
            f"group: found {group!r}, expected one of {', '.join(map(repr, GROUPS))}, the groups "
            f"that move pixels to pixels.{hint}"
        )
    order = int(group[2])
    mirrors = (False, True) if group.startswith("D") else (False,)
    return [(4 // order * k, flips) for flips in mirrors for k in range(order)]


def _matrix(element: Element) -> Tensor:
    """How (x, y) moves, shape (2, 2), float64."""
    turns, flips = element
    mirror = torch.diag(torch.tensor([-1.0 if flips else 1.0, 1.0], dtype=torch.float64))
    return turn(turns, 4, 2) @ mirror


def _turned(values: Tensor, matrix: Tensor) -> Tensor:
    """Pairs of columns or channels turned, (B, 2 k, …) to (B, 2 k, …)."""
    pairs = values.unflatten(1, (-1, 2))
    return torch.einsum("ij,bkj...->bki...", matrix.to(values), pairs).flatten(1, 2)
