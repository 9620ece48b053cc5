"""A stack of E(n)-equivariant graph convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eqflow.edges import (
    DISTANCE_EPSILON,
    Dual,
    Edges,
    dual_linear,
    gather,
    smooth_cutoff,
    smooth_cutoff_slope,
    squared_distance,
)
from eqflow.errors import ShapeError, UsageError
from eqflow.nn.egcl import EGCL, CoordinateUpdate
from eqflow.nn.radial import OfDistance, radial_basis


class EGNN(nn.Module):
    """Equivariant in positions, invariant in features, for points in any dimension.

    Args:
        features: Width of the node features that go in and, unless `positions_only`, come out.
        width: Width of hidden features and messages.
        layers: Number of `EGCL` layers.
        attention, infer_edges, coordinate_update, momentum: As in `EGCL`. With momentum each layer
            is given the same initial velocity.
        edge_features: Number of edge attributes given to each layer.
        coordinate_range: Bound of the coordinate weights summed over all layers (the published
            flow: 15); each layer gets an equal part. Unbounded where None.
        input_distance: Give each layer the squared distance at the network's input as well.
        radial: Number of `radial_basis` functions of that distance which each layer is given
            besides; a bond's length is read off them sooner than off a square.
        cutoff: Distance between the input positions at which the messages of all layers end
            smoothly, in the unit of `x`; none where None.
        positions_only: Leave out the last feature update and the output layer, whose work a field
            of positions would throw away; `h` then comes back at its hidden width.
        output_features: Width of the node features that come out; `features` where None.

    Raises:
        UsageError: If an option is out of range, or a cutoff is asked for with messages divided by
            the number of neighbours, which jumps as one comes or goes.

    Example:
        >>> from eqflow.edges import Edges
        >>> egnn = EGNN(features=6, width=16, layers=2, attention=True)
        >>> edges = Edges.complete(torch.tensor([0, 3, 7]))
        >>> x, h = egnn(torch.randn(7, 3), torch.randn(7, 6), edges)
        >>> x.shape, h.shape
        (torch.Size([7, 3]), torch.Size([7, 6]))
    """

    def __init__(
        self,
        features: int,
        width: int = 64,
        layers: int = 4,
        *,
        attention: bool = False,
        infer_edges: bool = False,
        coordinate_update: CoordinateUpdate = "stabilized",
        coordinate_range: float | None = None,
        edge_features: int = 0,
        input_distance: bool = False,
        radial: int = 0,
        cutoff: float | None = None,
        momentum: bool = False,
        positions_only: bool = False,
        output_features: int | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise UsageError(f"EGNN: found layers={layers}, expected at least 1.")
        if features < 1 or width < 1 or edge_features < 0:
            raise UsageError(
                f"EGNN: found features={features}, width={width}, edge_features={edge_features}; "
                "expected at least 1, 1 and 0."
            )
        if radial < 0 or (radial and not input_distance) or radial == 1:
            raise UsageError(
                f"EGNN: found radial={radial} with input_distance={input_distance}; expected 0, or "
                "at least 2 and input_distance=True."
            )
        if coordinate_range is not None and not 0 < coordinate_range < math.inf:
            raise UsageError(
                f"coordinate_range: found {coordinate_range}, expected a positive number or None."
            )
        if cutoff is not None and not 0 < cutoff < math.inf:
            raise UsageError(f"cutoff: found {cutoff}, expected a positive number or None.")
        if cutoff is not None and coordinate_update == "mean":
            raise UsageError(
                "EGNN: found a cutoff with coordinate_update='mean', whose number of neighbours "
                "jumps at the cutoff. Pass coordinate_update='stabilized'."
            )
        if output_features is not None and (positions_only or output_features < 1):
            raise UsageError(
                f"EGNN: found output_features={output_features} with "
                f"positions_only={positions_only}; expected at least 1, and an output layer."
            )
        self.input_distance = input_distance
        self.radial = radial
        self.cutoff = cutoff
        self.edge_features = edge_features
        self.embed = nn.Linear(features, width)
        self.layers = nn.ModuleList(
            EGCL(
                width,
                edge_features=edge_features + int(input_distance) + radial,
                attention=attention,
                infer_edges=infer_edges,
                coordinate_update=coordinate_update,
                coordinate_range=None if coordinate_range is None else coordinate_range / layers,
                momentum=momentum,
                update_features=not (positions_only and layer == layers - 1),
            )
            for layer in range(layers)
        )
        out = features if output_features is None else output_features
        self.readout = nn.Identity() if positions_only else nn.Linear(width, out)

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        edges: Edges,
        edge_attributes: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Apply all layers.

        Args:
            x: Positions, shape (N, d).
            h: Node features, shape (N, features).
            edges: The graph.
            edge_attributes: Shape (E, edge_features), in the order of `edges`.
            velocity: Initial velocity, shape (N, d), for `momentum=True`.

        Returns:
            `(x, h)`, and with momentum `(x, h, velocity)` with the velocity of the last layer.

        Raises:
            ShapeError: If a shape does not fit.
        """
        self._check(h, edges, edge_attributes)
        edge_attributes, envelope = self._of_input(x, edges, edge_attributes)
        h = self.embed(h)
        moved: list[Tensor] = []
        for layer in self.layers:
            x, h, *moved = layer(x, h, edges, edge_attributes, velocity, envelope)
        return (x, self.readout(h), *moved)

    @property
    def is_as_made(self) -> bool:
        """Whether nothing in it was replaced or hooked: `pushforward` is then that of `forward`."""
        return type(self) is EGNN and all(
            type(part) in PARTS
            and not part._forward_hooks
            and not part._forward_pre_hooks
            and "forward" not in vars(part)
            for part in self.modules()
        )

    def pushforward(self, x: Dual, h: Dual, edges: Edges) -> tuple[Dual, Dual]:
        """`forward` with tangents carried through all layers.

        Args:
            x: Positions (N, d) and S tangents (N, S, d).
            h: Node features (N, features) and tangents (N, S, features), None where they are the
                same along all directions.
            edges: The graph.

        Returns:
            Positions and features afterwards with their tangents.
        """
        self._check(h.value, edges, None)
        attributes, envelope = self._of_input_dual(x, edges)
        features = dual_linear(h, self.embed.weight, self.embed.bias)
        for layer in self.layers:
            x, features = layer.pushforward(x, features, edges, attributes, envelope)
        if isinstance(self.readout, nn.Identity):
            return x, features
        return x, dual_linear(features, self.readout.weight, self.readout.bias)

    def _of_input_dual(self, x: Dual, edges: Edges) -> tuple[Dual | None, Dual | None]:
        if not self.input_distance and self.cutoff is None:
            return None, None
        difference = Dual(*(gather(part, edges) - gather(part, edges, "receiver") for part in x))
        d2 = difference.value.square().sum(-1)
        dd2 = 2 * (difference.value.unsqueeze(1) * difference.tangent).sum(-1)
        attributes = None
        if self.input_distance:
            value, slope = self.distance_attributes(d2)
            attributes = Dual(value, slope.unsqueeze(1) * dd2.unsqueeze(2))
        if self.cutoff is None:
            return attributes, None
        d = (d2 + DISTANCE_EPSILON).sqrt()
        slope = smooth_cutoff_slope(d, self.cutoff) / (2 * d)
        return attributes, Dual(smooth_cutoff(d, self.cutoff), slope.unsqueeze(1) * dd2)

    def _of_input(
        self, x: Tensor, edges: Edges, edge_attributes: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What all layers take from the input positions: attributes of the edges and envelope.

        The graph was made of the input positions, so it is there that the envelope has to vanish
        where an edge comes or goes, also in layers that see moved ones.
        """
        if not self.input_distance and self.cutoff is None:
            return edge_attributes, None
        d2 = squared_distance(x, edges)
        envelope = None
        if self.cutoff is not None:
            envelope = smooth_cutoff((d2 + DISTANCE_EPSILON).sqrt(), self.cutoff)
        if self.input_distance:
            columns = self.distance_attributes(d2).value
            edge_attributes = (
                columns if edge_attributes is None else torch.cat([edge_attributes, columns], 1)
            )
        return edge_attributes, envelope

    def distance_attributes(self, d2: Tensor) -> OfDistance:
        """What each layer is given of squared input distances (...): the square first."""
        own = d2.unsqueeze(-1)
        if not self.radial:
            return OfDistance(own, torch.ones_like(own))
        basis = radial_basis(d2, self.radial)
        return OfDistance(
            torch.cat([own, basis.value], -1), torch.cat([torch.ones_like(own), basis.slope], -1)
        )

    def _check(self, h: Tensor, edges: Edges, edge_attributes: Tensor | None) -> None:
        if h.shape != (edges.nodes, self.embed.in_features):
            raise ShapeError(
                f"EGNN: h has shape {tuple(h.shape)}, expected "
                f"({edges.nodes}, {self.embed.in_features}): one row a node, `features` wide."
            )
        found = None if edge_attributes is None else tuple(edge_attributes.shape)
        expected = (edges.count, self.edge_features) if self.edge_features else None
        if found != expected:
            raise ShapeError(f"EGNN: edge_attributes has shape {found}, expected {expected}.")


PARTS = {EGNN, EGCL, nn.ModuleList, nn.Sequential, nn.Linear, nn.SiLU, nn.Identity}
