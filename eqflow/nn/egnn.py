"""A stack of E(n)-equivariant graph convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, squared_distance
from eqflow.errors import UsageError
from eqflow.nn.egcl import EGCL, CoordinateUpdate


class EGNN(nn.Module):
    """Equivariant in positions, invariant in features, for points in any dimension.

    Args:
        features: Width of the node features that go in and, unless `positions_only`, come out.
        width: Width of hidden features and messages.
        layers: Number of `EGCL` layers.
        attention, infer_edges, coordinate_update, cutoff, momentum: As in `EGCL`.
        edge_features: Number of edge attributes given to each layer.
        coordinate_range: Bound of the coordinate weights summed over all layers (the published
            flow: 15); each layer gets an equal part. Unbounded where None.
        input_distance: Give each layer the squared distance at the network's input as well.
        positions_only: Leave out the last feature update and the output layer, whose work a field
            of positions would throw away; `h` then comes back at its hidden width.

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
        cutoff: float | None = None,
        momentum: bool = False,
        positions_only: bool = False,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise UsageError(f"EGNN: found layers={layers}, expected at least 1.")
        self.input_distance = input_distance
        self.embed = nn.Linear(features, width)
        self.layers = nn.ModuleList(
            EGCL(
                width,
                edge_features=edge_features + int(input_distance),
                attention=attention,
                infer_edges=infer_edges,
                coordinate_update=coordinate_update,
                coordinate_range=None if coordinate_range is None else coordinate_range / layers,
                cutoff=cutoff,
                momentum=momentum,
                update_features=not (positions_only and layer == layers - 1),
            )
            for layer in range(layers)
        )
        self.readout = nn.Identity() if positions_only else nn.Linear(width, features)

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
            `(x, h)`, and with momentum `(x, h, velocity)`.

        Raises:
            ShapeError: If a shape does not fit.
        """
        if self.input_distance:
            d2 = squared_distance(x, edges).unsqueeze(1)
            edge_attributes = d2 if edge_attributes is None else torch.cat([edge_attributes, d2], 1)
        h = self.embed(h)
        for layer in self.layers:
            x, h, *moved = layer(x, h, edges, edge_attributes, velocity)
            velocity = moved[0] if moved else None
        return (x, self.readout(h)) if velocity is None else (x, self.readout(h), velocity)
