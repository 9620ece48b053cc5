r"""The E(n)-equivariant graph convolution, plain and stabilized.

For receiver `i` and sender `j`, with :math:`d_{ij} = \lVert x_i - x_j \rVert`:

.. math::
    m_{ij} &= \varphi_e(h_i, h_j, d_{ij}^2, a_{ij}) \\
    x_i &\leftarrow x_i + \sum_j \frac{x_i - x_j}{d_{ij} + 1} \varphi_x(m_{ij})
        \quad \text{(stabilized)} \qquad
    x_i \leftarrow x_i + \tfrac{1}{n-1} \sum_j (x_i - x_j) \varphi_x(m_{ij}) \quad \text{(mean)} \\
    h_i &\leftarrow h_i + \varphi_h(h_i, \textstyle\sum_j e_{ij} m_{ij})

References: E(n) Equivariant Graph Neural Networks (Satorras, Hoogeboom, Welling, 2021),
arXiv:2102.09844, eq. 3-8; E(n) Equivariant Normalizing Flows (Satorras et al., 2021),
arXiv:2105.09016, eq. 9-12. The residual in the feature update is in both codes, not in the
formulas.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from eqflow.edges import (
    Dual,
    EdgeNetwork,
    Edges,
    Gate,
    MessageInputs,
    MessageTangents,
    dual_linear,
    dual_silu,
    egcl_messages,
    egcl_messages_dual,
)
from eqflow.errors import ShapeError, UsageError

CoordinateUpdate = Literal["stabilized", "mean"]

# Xavier gain of the last layer of φ_x: a new network moves points by almost nothing.
COORDINATE_GAIN = 1e-3


class EGCL(nn.Module):
    """One E(n)-equivariant graph convolution, for points in any dimension.

    Its linear layers hold weights that are read, not modules that are called: change a weight by
    `torch.nn.utils.parametrize`, not by a hook.

    Args:
        features: Width of the node features `h`.
        width: Width of the messages; `features` where None.
        edge_features: Number of edge attributes `a`, K.
        attention: Multiply each message by a gate `sigmoid(w · m + b)`.
        infer_edges: Multiply each message by such a gate in the feature sum only (where there is
            one: with `update_features`).
        coordinate_update: Divide coordinate differences by `d + 1`, or by the number of neighbours.
        coordinate_range: Bound of the coordinate weight, `R tanh(φ_x)`; unbounded where None.
        momentum: Take an initial velocity: `v_i = φ_v(h_i) v_i^init + shift`, `x_i ← x_i + v_i`.
        update_features: Whether `h` is updated; False leaves out `φ_h` altogether.

    Raises:
        UsageError: If an option is out of range.
    """

    def __init__(
        self,
        features: int,
        width: int | None = None,
        *,
        edge_features: int = 0,
        attention: bool = False,
        infer_edges: bool = False,
        coordinate_update: CoordinateUpdate = "stabilized",
        coordinate_range: float | None = None,
        momentum: bool = False,
        update_features: bool = True,
    ) -> None:
        super().__init__()
        if coordinate_update not in ("stabilized", "mean"):
            raise UsageError(
                f"coordinate_update: found {coordinate_update!r}, expected 'stabilized' or 'mean'."
            )
        if coordinate_range is not None and not 0 < coordinate_range < math.inf:
            raise UsageError(
                f"coordinate_range: found {coordinate_range}, expected a positive number or None."
            )
        width = features if width is None else width
        if features < 1 or width < 1 or edge_features < 0:
            raise UsageError(
                f"EGCL: found features={features}, width={width}, edge_features={edge_features}; "
                "expected at least 1, 1 and 0."
            )
        self.edge_features = edge_features
        self.stabilized = coordinate_update == "stabilized"
        self.coordinate_range = coordinate_range

        # φ_e, its first layer factored: W₁ h_i + b, W₂ h_j and W_a [d², a].
        self.receiver = nn.Linear(features, width)
        self.sender = nn.Linear(features, width, bias=False)
        self.scalars = nn.Linear(1 + edge_features, width, bias=False)
        self.message = nn.Linear(width, width)
        _share_fan_in(self.receiver, self.sender, self.scalars)
        self.attention = nn.Linear(width, 1) if attention else None
        self.inference = nn.Linear(width, 1) if infer_edges and update_features else None

        # φ_x.
        self.coordinate = nn.Linear(width, width)
        self.coordinate_out = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.coordinate_out.weight, gain=COORDINATE_GAIN)

        # φ_h and φ_v.
        self.feature_update = (
            nn.Sequential(nn.Linear(features + width, width), nn.SiLU(), nn.Linear(width, features))
            if update_features
            else None
        )
        self.velocity_scale = (
            nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, 1))
            if momentum
            else None
        )

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        edges: Edges,
        edge_attributes: Tensor | None = None,
        velocity: Tensor | None = None,
        envelope: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Update positions and features.

        Args:
            x: Positions, shape (N, d).
            h: Node features, shape (N, features).
            edges: The graph.
            edge_attributes: `a`, shape (E, edge_features), in the order of `edges`.
            velocity: Initial velocity, shape (N, d), for `momentum=True`.
            envelope: Weight of each edge's message, shape (E,), such as a smooth cutoff.

        Returns:
            `(x, h)`, and with momentum `(x, h, velocity)`.

        Raises:
            ShapeError: If a shape does not fit.
            UsageError: If a velocity is given without momentum, or missing with it.
        """
        self._check(x, h, edges, edge_attributes, velocity, envelope)
        network = self.edge_network()
        shift, message = egcl_messages(
            x, self.receiver(h), self.sender(h), edge_attributes, network, edges, envelope
        )
        if self.velocity_scale is not None:
            velocity = self.velocity_scale(h) * velocity + shift
            x = x + velocity
        else:
            x = x + shift
        if self.feature_update is not None:
            h = h + self.feature_update(torch.cat([h, message], -1))
        return (x, h) if velocity is None else (x, h, velocity)

    def pushforward(
        self,
        x: Dual,
        h: Dual,
        edges: Edges,
        edge_attributes: Dual | None = None,
        envelope: Dual | None = None,
    ) -> tuple[Dual, Dual]:
        """`forward` with tangents carried beside each value, for layers without momentum.

        Args:
            x: Positions (N, d) and tangents (N, S, d).
            h: Features (N, features) and tangents (N, S, features), None where they are zero.
            edges: The graph.
            edge_attributes: (E, edge_features) and (E, S, edge_features).
            envelope: (E,) and (E, S).

        Returns:
            Positions and features afterwards.

        Raises:
            UsageError: If the layer has momentum.
        """
        if self.velocity_scale is not None:
            raise UsageError("EGCL: tangents are carried without momentum; found momentum=True.")
        attributes, weight = edge_attributes or Dual(None), envelope or Dual(None)
        receiver = dual_linear(h, self.receiver.weight, self.receiver.bias)
        sender = dual_linear(h, self.sender.weight)
        values, tangents = zip(x, receiver, sender, attributes, weight, strict=True)
        sums = egcl_messages_dual(
            MessageInputs(*values), MessageTangents(*tangents), self.edge_network(), edges
        )
        x = Dual(x.value + sums.shift, x.tangent + sums.shift_tangent)
        if self.feature_update is None:
            return x, h
        first, _, last = self.feature_update
        dh = torch.zeros_like(sums.message_tangent) if h.tangent is None else h.tangent
        both = Dual(
            torch.cat([h.value, sums.message], -1), torch.cat([dh, sums.message_tangent], -1)
        )
        inner = Dual(*dual_silu(*dual_linear(both, first.weight, first.bias)))
        update = dual_linear(inner, last.weight, last.bias)
        return x, Dual(h.value + update.value, dh + update.tangent)

    def edge_network(self) -> EdgeNetwork:
        """The weights of `φ_e` and `φ_x` as the edge backend takes them."""
        return EdgeNetwork(
            scalar_weight=self.scalars.weight,
            message_weight=self.message.weight,
            message_bias=self.message.bias,
            coordinate_weight=self.coordinate.weight,
            coordinate_bias=self.coordinate.bias,
            coordinate_out=self.coordinate_out.weight,
            attention=_gate(self.attention),
            inference=_gate(self.inference),
            coordinate_range=self.coordinate_range,
            stabilized=self.stabilized,
        )

    def _check(
        self,
        x: Tensor,
        h: Tensor,
        edges: Edges,
        edge_attributes: Tensor | None,
        velocity: Tensor | None,
        envelope: Tensor | None,
    ) -> None:
        if x.dim() != 2 or x.shape[0] != edges.nodes:
            raise ShapeError(f"EGCL: x has shape {tuple(x.shape)}, expected ({edges.nodes}, d).")
        if h.shape != (edges.nodes, self.receiver.in_features):
            raise ShapeError(
                f"EGCL: h has shape {tuple(h.shape)}, expected "
                f"({edges.nodes}, {self.receiver.in_features}): one row a node, `features` wide."
            )
        found = None if edge_attributes is None else tuple(edge_attributes.shape)
        expected = (edges.count, self.edge_features) if self.edge_features else None
        if found != expected:
            raise ShapeError(f"EGCL: edge_attributes has shape {found}, expected {expected}.")
        if (velocity is None) != (self.velocity_scale is None):
            raise UsageError(
                "EGCL: a velocity is taken with momentum=True and only then; "
                f"found velocity {'missing' if velocity is None else 'given'}."
            )
        if velocity is not None and velocity.shape != x.shape:
            raise ShapeError(
                f"EGCL: velocity has shape {tuple(velocity.shape)}, expected {tuple(x.shape)}."
            )
        if envelope is not None and envelope.shape != (edges.count,):
            raise ShapeError(
                f"EGCL: envelope has shape {tuple(envelope.shape)}, expected ({edges.count},)."
            )


def _gate(layer: nn.Linear | None) -> Gate | None:
    return None if layer is None else Gate(layer.weight, layer.bias)


def _share_fan_in(*parts: nn.Linear) -> None:
    """Initialise layers whose outputs are added as `nn.Linear` would one on all their inputs."""
    bound = sum(part.in_features for part in parts) ** -0.5
    for part in parts:
        for parameter in part.parameters():
            nn.init.uniform_(parameter, -bound, bound)
