r"""The one right-hand side of every diffusion model here.

.. math::
    \dot x_i = \Big( \sum_{j} w_{ij} (x_j - x_i) + g_i x_i \Big) W - x_i \Omega + s_i

Weights `w` are the diffusivity of each edge, `g` the gain that rows of weights that do not cancel
leave on the diagonal, `W` mixes channels, `Ω` damps them, `s` is a source. A model is a way to get
these from the state; where they do not depend on it, the equation is linear and has a solution in
closed form, see `eqflow.flows`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, weighted_difference
from eqflow.errors import ShapeError
from eqflow.nn.arguments import require_edges, require_kind_of
from eqflow.nn.field import AbstractField


@dataclass(frozen=True)
class Coefficients:
    """What the right-hand side is made of, at one state or for a whole solve.

    Attributes:
        edges: The graph.
        weight: `w`, shape (E,); or (E, H) for `H` heads, each of which moves all channels, their
            results side by side being what `mixing` takes.
        gain: `g`, shape (N,), or None for 0.
        mixing: `W`, shape (C, C), or (H·C, C) where there are heads; None for the identity.
        damping: `Ω`, a scalar, the diagonal (C,), or (C, C); None for 0.
        source: `s`, shape (N, C), or None for 0.

    Raises:
        ShapeError: If there are heads and nothing that mixes them.
    """

    edges: Edges
    weight: Tensor
    gain: Tensor | None = None
    mixing: Tensor | None = None
    damping: Tensor | None = None
    source: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() == 2 and self.mixing is None:
            raise ShapeError(
                f"diffusion: found weights {tuple(self.weight.shape)} of "
                f"{self.weight.shape[1]} heads without a mixing matrix, expected (E,), or mixing "
                "(H·C, C). Average the heads, or give a mixing matrix."
            )

    def velocity(self, x: Tensor) -> Tensor:
        """`ẋ` at `x`, shape (N, C)."""
        moved = self.linear(x)
        return moved if self.source is None else moved + self.source

    def linear(self, x: Tensor) -> Tensor:
        """`ẋ` without the source: linear in `x`, shape (N, C)."""
        moved = weighted_difference(self.weight, x, self.edges)
        if self.gain is not None:
            kept = self.gain.unsqueeze(1) * x
            moved = moved + (kept if moved.dim() == 2 else kept.unsqueeze(1))
        if self.mixing is not None:
            moved = moved.flatten(1) @ self.mixing
        if self.damping is not None:
            moved = moved - (x @ self.damping if self.damping.dim() == 2 else x * self.damping)
        return moved


def start_of(field: AbstractField, x: Tensor, context: Tensor | None) -> Tensor:
    """The state at the start of a solve, which a field takes as its context.

    Raises:
        ShapeError: If it was not given, or has another shape than the state.
    """
    if context is None or context.shape != x.shape:
        found = None if context is None else tuple(context.shape)
        raise ShapeError(
            f"{type(field).__name__}: found context {found}, expected the state at the start of "
            f"the solve, {tuple(x.shape)}. Pass context=x at the first time."
        )
    return context


class AbstractDiffusion(AbstractField):
    """A field that is a diffusion: it says its coefficients.

    The context is the state at the start of the solve, `x(0)`, where a source term or weights that
    are computed once ask for it.

    Attributes:
        is_linear: Whether the coefficients depend on neither time nor state, so that those of the
            start serve the whole solve.
    """

    is_linear: bool = False

    @property
    def moves_by_coefficients(self) -> bool:
        """Whether the velocity is that of the coefficients, with nothing done to it.

        Methods that know the coefficients serve no other field.
        """
        return type(self).forward is AbstractDiffusion.forward

    @abstractmethod
    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """The coefficients of the right-hand side.

        Args:
            t: Time, a scalar.
            x: State, shape (N, C).
            edges: The graph.
            context: The state at the start, shape (N, C), or None where nothing asks for it.

        Raises:
            ShapeError: If the state at the start is needed and missing, or of another shape.
        """

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity, shape (N, C); arguments as in `coefficients`."""
        return self.coefficients(t, x, edges, context).velocity(x)

    def require_state(self, x: Tensor, edges: Edges, width: int) -> None:
        """Refuse a state that is not (N, width), or of another type than the parameters.

        Raises:
            ShapeError: That says so.
            UsageError: If the edges are no graph.
        """
        require_edges(type(self).__name__, edges)
        require_kind_of(type(self).__name__, self, x)
        if x.shape != (edges.nodes, width):
            raise ShapeError(
                f"{type(self).__name__}: found a state {tuple(x.shape)}, expected "
                f"({edges.nodes}, {width}): a row for each node, a column for each channel."
            )


def free_matrix(rows: int, columns: int) -> nn.Parameter:
    """A matrix to learn, of normal entries of variance `1 / rows` from torch's global generator."""
    return nn.Parameter(nn.init.normal_(torch.empty(rows, columns), std=rows**-0.5))
