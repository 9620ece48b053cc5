r"""Group averaging: any network of point clouds made equivariant under a finite group.

:math:`⟨Φ⟩(x) = |G|^{-1} \sum_g ρ_2(g)\, Φ(ρ_1(g)^{-1} x)` (Reynolds operator). The mean is exactly
equivariant, whatever Φ is, and leaves a Φ alone that is equivariant already; it costs `|G|` calls.

About the centre of mass c of each cloud, `x_i ↦ c + R (x_i − c)`, the backbone sees `x − c` and the
mean is equivariant under translations too: under the group that is spanned by both.

Reference: Frame Averaging for Invariant and Equivariant Network Design (Puny et al., 2021),
arXiv:2110.03336, section 2.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments, centre_of_mass
from eqflow.geometry.representations import Representation, representation
from eqflow.nn.arguments import require_counts
from eqflow.nn.averaging.features import Backbone
from eqflow.nn.averaging.groups import FiniteGroup, matrix_group
from eqflow.nn.averaging.inputs import checked_input, require_callable
from eqflow.nn.averaging.moved import Batch, Elements, moved_outputs
from eqflow.nn.averaging.named_groups import finite_group
from eqflow.nn.averaging.outputs import owner_of_rows


class GroupAverage(nn.Module):
    """A backbone averaged over a finite group of rotations, reflections and permutations.

    Args:
        backbone: `backbone(x, ptr, h)` with `x` (N, d), `ptr` (B + 1,) and `h` (N, F) or None;
            returns a row a point, (N, k), or a row a cloud, (B, k). It is called with the batch
            repeated for many elements.
        group: A name, such as `"C(4)"`, `"C(3)v"`, `"Td"`, `"Oh"`, `"Ih"` or `"S(4)"` (see
            `eqflow.nn.averaging.named_groups`), a `FiniteGroup`, such as a product of two, or all
            matrices of one, shape (G, d, d).
        output: How the output moves: `"scalar"`, `"vector"`, `"point"`, `"tensor(m)"`, or irreps of
            O(3) in e3nn's notation. Permutations reorder rows of points, and leave alone those of
            clouds.
        features: How the features `h` of a point move, in the same words.
        dimension: Number of coordinates d; by default that of the matrices, and 3 for a name.
        about: What the matrices turn about: each cloud's `"centre"` of mass, which makes the mean
            equivariant under translations too, or the `"origin"`.
        rows: Most points in one call of the backbone; the batch itself is not taken apart.

    Raises:
        UsageError: If there is no such group, output or features, the backbone cannot be called, or
            another argument is wrong.
        ShapeError: If the group acts in another dimension.

    Example:
        >>> import torch
        >>> from eqflow.nn.averaging import GroupAverage
        >>> lopsided = lambda x, ptr, h: x[:, :1] * x
        >>> model = GroupAverage(lopsided, "C(4)", output="vector", dimension=2)
        >>> square = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
        >>> model(square, torch.tensor([0, 4])).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        backbone: Backbone,
        group: str | FiniteGroup | Tensor,
        output: str = "vector",
        features: str = "scalar",
        *,
        dimension: int | None = None,
        about: Literal["centre", "origin"] = "centre",
        rows: int = 65536,
    ) -> None:
        super().__init__()
        require_callable(backbone, "GroupAverage")
        require_counts("GroupAverage", rows=rows)
        if dimension is not None:
            require_counts("GroupAverage", dimension=dimension)
        self.backbone = backbone
        self.group = _group(group, dimension)
        self.dimension = self.group.dimension or dimension or 3
        self.output = representation(output, self.dimension)
        self.features = representation(features, self.dimension)
        if about not in ("centre", "origin"):
            raise UsageError(f"about: found {about!r}, expected 'centre' or 'origin'.")
        self.about = about
        self.rows = rows

    def forward(self, x: Tensor, ptr: Tensor | Segments, h: Tensor | None = None) -> Tensor:
        """The mean over the group.

        Args:
            x: Finite positions, shape (N, d).
            ptr: Start of each cloud, shape (B + 1,).
            h: Features of the points, shape (N, F), which move as `features` says.

        Returns:
            Shape (N, k) or (B, k), as the backbone's.

        Raises:
            ShapeError: If a shape does not fit, the backbone's output is none of that kind, or a
                cloud has another number of points than the group permutes.
            UsageError: If the backbone's output is no tensor of floating-point numbers.
            DataError: If a position or a feature is not finite.
        """
        clouds = checked_input(x, ptr, h, self.dimension, self.features, "GroupAverage")
        batch, centre = relative(x, clouds, h, self.features, self.about == "centre")
        elements = Elements(
            self.group.matrices, self.group.permutations, self.features, self.output
        )
        parts = moved_outputs(self.backbone, batch, elements, self.rows, "GroupAverage")
        total = next(parts).sum(0)
        for part in parts:
            total = total + part.sum(0)
        return placed(total / self.group.order, centre, clouds, self.output)

    def extra_repr(self) -> str:
        """The group and how outputs move, for `print`."""
        return (
            f"group={self.group.name!r} of order {self.group.order}, output={self.output.name!r}, "
            f"features={self.features.name!r}, about={self.about!r}"
        )


def relative(
    x: Tensor, clouds: Segments, h: Tensor | None, features: Representation, centres: bool
) -> tuple[Batch, Tensor | None]:
    """The batch relative to its centres of mass where `centres`, and those, shape (B, d)."""
    if not centres:
        return Batch(x, clouds, h), None
    centre = centre_of_mass(x, clouds)
    shift = clouds.expand(centre)
    if h is not None and features.translates:
        h = h - shift.to(h)
    return Batch(x - shift, clouds, h), centre


def placed(
    values: Tensor, centre: Tensor | None, clouds: Segments, output: Representation
) -> Tensor:
    """Outputs (M, k) that are relative to centres, where they are."""
    if centre is None or not output.translates:
        return values
    return values + centre.to(values).index_select(0, owner_of_rows(values.shape[0], clouds))


def _group(group: str | FiniteGroup | Tensor, dimension: int | None) -> FiniteGroup:
    if isinstance(group, Tensor):
        group = matrix_group(group)
    if not isinstance(group, FiniteGroup):
        return finite_group(group, 3 if dimension is None else dimension)
    if dimension is not None and group.dimension not in (None, dimension):
        raise ShapeError(
            f"group: {group.name} acts in {group.dimension} dimensions, but dimension={dimension}. "
            "Leave dimension out, or pass another group."
        )
    if group.matrices is None and group.permutations is None:
        raise UsageError(f"group: {group.name} has neither matrices nor permutations.")
    return group
