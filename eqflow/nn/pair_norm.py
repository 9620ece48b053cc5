r"""PairNorm: the total squared distance of all pairs of nodes stays what it is, layer after layer.

Features are centred in each graph and rescaled. PN scales all nodes of a graph alike,

.. math::
    x_i \leftarrow s \, x^c_i / \sqrt{\tfrac1n \sum_j \lVert x^c_j \rVert^2}, \quad
    x^c_i = x_i - \tfrac1n \sum_j x_j ,

PN-SI scales each node to the length `s`, and PN-SCS scales each node before centring instead.

Reference: PairNorm: Tackling Oversmoothing in GNNs (Zhao, Akoglu, 2020), arXiv:1909.12223, eq. 10,
11 and section 4.2; PN-SCS is in the authors' code.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import centred


class PairNorm(nn.Module):
    """PN: one scale a graph, by PyG's `PairNorm`, which keeps graphs of a batch apart.

    Args:
        scale: `s`, positive.
        epsilon: Added to the mean square (to the length in PN-SI), so that equal nodes become
            zeros and not NaN.

    Raises:
        UsageError: If the scale or `epsilon` is not positive and finite.
    """

    scales_each_node = False

    def __init__(self, scale: float = 1.0, epsilon: float = 1e-5) -> None:
        # PyG takes a second or two to import, which only its users pay.
        from torch_geometric.nn.norm import PairNorm as Normaliser

        super().__init__()
        _require_positive(type(self).__name__, scale=scale, epsilon=epsilon)
        self.normaliser = Normaliser(scale, self.scales_each_node, epsilon)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features of the next layer.

        Args:
            x: Node features, shape (N, F).
            edges: The graph, or a batch of graphs; only which nodes are of one graph matters.

        Returns:
            Shape (N, F), centred in each graph but for rounding, or for the scale of each node.

        Raises:
            ShapeError: If `x` is not (N, F).
        """
        _require_features(type(self).__name__, x, edges)
        normalised: Tensor = self.normaliser(x, edges.clouds.ids, edges.clouds.count)
        return normalised


class PairNormIndividually(PairNorm):
    """PN-SI: centred, then each node scaled to the length `s`; arguments as in `PairNorm`."""

    scales_each_node = True


class PairNormThenCentre(nn.Module):
    """PN-SCS: each node scaled to the length `s`, then centred: `s x_i / ‖x_i‖` less its mean.

    Args:
        scale: `s`, positive.
        epsilon: Added to the length of each node.

    Raises:
        UsageError: If one of them is not positive and finite.
    """

    def __init__(self, scale: float = 1.0, epsilon: float = 1e-6) -> None:
        super().__init__()
        _require_positive("PairNormThenCentre", scale=scale, epsilon=epsilon)
        self.scale = scale
        self.epsilon = epsilon

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features of the same shape, (N, F); arguments as in `PairNorm`."""
        _require_features("PairNormThenCentre", x, edges)
        length = self.epsilon + x.norm(dim=-1, keepdim=True)
        return centred(self.scale * x / length, edges.clouds)


def _require_positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{where}: found {name} = {value}, expected positive and finite.")


def _require_features(where: str, x: Tensor, edges: Edges) -> None:
    if x.dim() != 2 or x.shape[0] != edges.nodes:
        raise ShapeError(
            f"{where}: found x {tuple(x.shape)}, expected (N, F) for the {edges.nodes} nodes."
        )
