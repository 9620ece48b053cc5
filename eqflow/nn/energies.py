r"""How smooth node features are on their graph: Dirichlet energies and their relatives.

With each pair of neighbours counted once, whichever way its edges go,

.. math::
    E(x) = \tfrac12 \mathrm{tr}(x^\top L x)
         = \tfrac12 \sum_{\{i, j\}} \lVert x_i - x_j \rVert^2
         = \tfrac14 \sum_e \lVert x_c - x_r \rVert^2,

the last sum over directed edges. On a directed graph it is the energy of the graph in which each
edge also leads back, with half its weight. Self loops add nothing, repeated edges add up. Scaled by
degrees, `x_i / √d_i`, it is `½ tr(xᵀ Δ x)` of the symmetric normalised Laplacian, and divided by
`‖x‖²` it lies between 0 and `λ_max / 2`: at 0 features are as smooth as they can be, at the other
end as rough.

References: Understanding Convolution on Graphs via Energies (Di Giovanni, Rowbottom et al., 2022),
arXiv:2206.10991; A Survey on Oversmoothing in Graph Neural Networks (Rusch et al.,
2023), arXiv:2303.10993.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.edges import Edges, segment_sum, squared_distance
from eqflow.errors import ShapeError
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_edges
from eqflow.nn.graph_convolution import inverse_square_root_degrees
from eqflow.nn.per_graph import degrees


def node_dirichlet_energies(x: Tensor, edges: Edges) -> Tensor:
    """The part of each node, `¼ Σ_{e→i} ‖x_c − x_i‖²`; over a graph they add up to its energy.

    Args:
        x: Node features, shape (N, F).
        edges: The graph, or a batch of graphs.

    Returns:
        Shape (N,).

    Raises:
        ShapeError: If `x` is not (N, F) of floating point.
    """
    _require_features("node_dirichlet_energies", x, edges)
    return 0.25 * segment_sum(squared_distance(x, edges), edges)


def dirichlet_energy(x: Tensor, edges: Edges) -> Tensor:
    """`½ Σ ‖x_i − x_j‖²` over unordered pairs of neighbours, for each graph.

    Args:
        x: Node features, shape (N, F).
        edges: The graph, or a batch of graphs; see the module for directed ones.

    Returns:
        Shape (B,), in the unit of `x` squared.

    >>> path = Edges.from_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    >>> dirichlet_energy(torch.tensor([[0.0], [1.0], [3.0]]), path)
    tensor([2.5000])
    """
    energies = node_dirichlet_energies(x, edges)
    return edges.clouds.sum(energies)


def degree_scaled_dirichlet_energy(x: Tensor, edges: Edges) -> Tensor:
    """`½ Σ ‖x_i/√d_i − x_j/√d_j‖²` over unordered pairs of neighbours, for each graph.

    Degrees count incoming edges. A node without any adds nothing.

    Args:
        x: Node features, shape (N, F).
        edges: The graph, or a batch of graphs.

    Returns:
        Shape (B,).
    """
    _require_features("degree_scaled_dirichlet_energy", x, edges)
    return dirichlet_energy(inverse_square_root_degrees(edges, x.dtype).unsqueeze(-1) * x, edges)


def normalised_dirichlet_energy(x: Tensor, edges: Edges) -> Tensor:
    """The Rayleigh quotient `½ tr(xᵀ Δ x) / ‖x‖²` of the symmetric normalised Laplacian.

    Dynamics are dominated by low frequencies if it tends to 0, by high ones if to `λ_max / 2`.

    Args:
        x: Node features, shape (N, F); their common size does not matter, unless it is 0.
        edges: The graph, or a batch of graphs.

    Returns:
        Shape (B,); 0, as smooth as can be, for a graph whose features are all zero, or that has no
        features or no nodes.

    Raises:
        ShapeError: If `x` is not (N, F) of floating point.
    """
    _require_features("normalised_dirichlet_energy", x, edges)
    # Squares of what has shrunk or grown along many layers leave the range of floats.
    x = x / edges.clouds.expand(common_size(x, edges.clouds)).unsqueeze(-1)
    length = edges.clouds.sum(x.square().sum(-1))
    return degree_scaled_dirichlet_energy(x, edges) / length.masked_fill(length == 0, 1)


def mean_average_distance(x: Tensor, edges: Edges) -> Tensor:
    """Cosine distance to neighbours, `1 − cos(x_i, x_j)`, averaged at each node, then over nodes.

    Nodes without incoming edges are left out. Distances of 0 count, unlike in the reference, whose
    average jumps there. It says nothing of a single feature, whose cosines are ±1.

    Args:
        x: Node features, shape (N, F); a row of zeros is at distance ½ from any other direction.
        edges: The graph, or a batch of graphs.

    Returns:
        Shape (B,), between 0 and 2; 0 for a graph without edges, or without features.

    Raises:
        ShapeError: If `x` is not (N, F) of floating point.

    Reference: Measuring and Relieving the Over-smoothing Problem for Graph Neural Networks (Chen et
    al., 2020), arXiv:1909.03211, eq. 1-4.
    """
    _require_features("mean_average_distance", x, edges)
    # Directions do not change; squares of entries far from 1 would leave the range of floats.
    if x.shape[1]:
        x = x / _power_of_two(x.detach().abs().amax(-1, keepdim=True))
    unit = torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)
    degree = degrees(edges, x.dtype)
    # `1 − ⟨u, v⟩ = ½ ‖u − v‖²` keeps its digits where directions are almost the same.
    average = segment_sum(0.5 * squared_distance(unit, edges), edges) / degree.clamp(min=1)
    reached = edges.clouds.sum((degree > 0).to(x.dtype))
    return edges.clouds.sum(average) / reached.clamp(min=1)


def common_size(x: Tensor, clouds: Segments) -> Tensor:
    """A power of 2 near the largest entry of each graph's features, shape (B,), a constant.

    Features divided by it are of order 1 and lose no digit. It is 1 where all entries are zero or
    there are none, or where one is not finite.

    Args:
        x: Node features, shape (N, F).
        clouds: Which nodes are of which graph.
    """
    if not x.numel():
        return x.new_ones(clouds.count)
    return _power_of_two(clouds.max(x.detach().abs().amax(-1)))


def _power_of_two(largest: Tensor) -> Tensor:
    """The largest power of 2 that is not above a positive number; 1 elsewhere."""
    fits = (largest > 0) & largest.isfinite()
    usual = torch.where(fits, largest, 1).clamp(min=torch.finfo(largest.dtype).tiny)
    _, exponent = torch.frexp(usual)
    return torch.ldexp(torch.ones_like(usual), exponent - 1)


def _require_features(where: str, x: Tensor, edges: Edges) -> None:
    require_edges(where, edges)
    if x.dim() != 2 or x.shape[0] != edges.nodes or not x.is_floating_point():
        raise ShapeError(
            f"{where}: found x {tuple(x.shape)} of {x.dtype}, expected (N, F) of floating point "
            f"for the {edges.nodes} nodes."
        )
