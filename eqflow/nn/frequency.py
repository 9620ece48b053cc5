r"""Which frequencies of a graph a linear diffusion ends in, told from two spectra.

For `ẋ = Ã x W − x Ω` with symmetric `W` and `Ω`, and for eigenvectors of the symmetric normalised
Laplacian `Δ = I − Ã` at `λ`, the state of the mode follows the symmetric matrix

.. math::
    M(\lambda) = (1 - \lambda) W - \Omega .

Its largest eigenvalue is convex in `λ`, so the fastest mode of all is at `λ = 0` or at `λ_max`:
features end in low frequencies, and the normalised Dirichlet energy at 0, or in high ones, and it
ends at `λ_max / 2`. Without `Ω` the latter is so if and only if `|μ_min| (λ_max − 1) > μ_max` for
the eigenvalues `μ` of `W`, where these have both signs. An explicit Euler step `τ` has the factors
`1 + τ M(λ)`, whose largest modulus is convex as well: steps `τ > 2/λ_max` of pure diffusion
(`W = Ω = I`) blow up the highest frequency instead of smoothing it away.

Reference: Understanding Convolution on Graphs via Energies (Di Giovanni, Rowbottom et al., 2022),
arXiv:2206.10991, on low- and high-frequency dominance, with the ½ in the Dirichlet energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import scipy.sparse
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import NumericalError, ShapeError, UsageError
from eqflow.nn.graph_convolution import symmetric_weights

Dominance = Literal["low", "high", "neither"]

# A dense spectrum of so many nodes takes seconds and a few hundred MB.
MOST_NODES = 5000
# Beyond so many an iteration for one eigenvalue is faster than all of them.
DENSE_NODES = 400
# Rates that differ by less, relatively, are told apart by no float64 computation.
TIE = 1e-9


@dataclass(frozen=True)
class FrequencyDominance:
    """What the spectra say, and the numbers it follows from.

    Attributes:
        dominant: The frequencies that the features end in; `"neither"` where both ends of the
            spectrum grow alike, and what they end in depends on where they start.
        limit: Normalised Dirichlet energy they end at; NaN for neither.
        low_rate, high_rate: Largest exponential rate, in `1/t`, of a mode at `λ = 0` and at
            `λ_max`: `ln |1 + τ m| / τ` where there is a step `τ`.
        mixing_lowest, mixing_highest: Extreme eigenvalues `μ` of `W`.
        laplacian_highest: `λ_max`, at most 2.
        step: `τ`, or None for the flow itself.
    """

    dominant: Dominance
    limit: float
    low_rate: float
    high_rate: float
    mixing_lowest: float
    mixing_highest: float
    laplacian_highest: float
    step: float | None


def laplacian_spectrum(edges: Edges) -> Tensor:
    """Eigenvalues of `Δ = I − D^{-1/2} A D^{-1/2}`, rising, each between 0 and 2.

    A node without edges has the eigenvalue 0, so the multiplicity of 0 is the number of components.

    Args:
        edges: A symmetric graph of at most 5000 nodes; graphs of a batch are taken together.

    Returns:
        Shape (N,), float64, on the CPU.

    Raises:
        UsageError: If the graph is directed or too large.
    """
    _require_symmetric("laplacian_spectrum", edges)
    if edges.nodes > MOST_NODES:
        raise UsageError(
            f"laplacian_spectrum: found {edges.nodes} nodes, expected at most {MOST_NODES} for all "
            "eigenvalues. Ask for largest_laplacian_eigenvalue."
        )
    dense = torch.from_numpy(_laplacian(edges).toarray())
    spectrum: Tensor = torch.linalg.eigvalsh(dense)
    return spectrum


def largest_laplacian_eigenvalue(edges: Edges) -> float:
    """`λ_max` of the symmetric normalised Laplacian, by Lanczos iterations on large graphs.

    It is 2 for a graph with a bipartite component, and 0 for one without edges.

    Args:
        edges: A symmetric graph of any size; graphs of a batch are taken together.

    Raises:
        UsageError: If the graph is directed.
        NumericalError: If the iterations do not converge.
    """
    _require_symmetric("largest_laplacian_eigenvalue", edges)
    if edges.nodes == 0 or edges.count == 0:
        return 0.0
    if edges.nodes <= DENSE_NODES:
        return float(laplacian_spectrum(edges)[-1])
    like = torch.zeros((), dtype=torch.float64)
    start = rng.normal((edges.nodes,), like, rng.generator(0, "laplacian", edges.nodes))
    try:
        found = eigsh(
            _laplacian(edges), k=1, which="LA", v0=start.numpy(), return_eigenvectors=False
        )
    except ArpackError as error:
        raise NumericalError(
            f"largest_laplacian_eigenvalue: no convergence on {edges.nodes} nodes ({error})."
        ) from error
    return float(found[0])


def frequency_dominance(
    mixing: Tensor,
    edges: Edges,
    *,
    damping: Tensor | None = None,
    step: float | None = None,
) -> FrequencyDominance:
    """Whether `ẋ = Ã x W − x Ω` ends in low or in high frequencies of its graph.

    Args:
        mixing: `W`, symmetric, shape (C, C).
        edges: One symmetric graph, without self loops added unless the dynamics has them.
        damping: `Ω`, shape (C, C), symmetric, or (C,) for a diagonal one; none where None.
        step: Length `τ > 0` of explicit Euler steps; the flow itself where None.

    Returns:
        The prediction, for features that start with a part in every mode.

    Raises:
        ShapeError: If a matrix has another shape.
        UsageError: If one is not symmetric or not finite, the graph is directed, there are several,
            or the step is not positive.
    """
    w = _symmetric_matrix("mixing", mixing, mixing.shape[-1] if mixing.dim() else 0)
    if damping is None:
        omega = torch.zeros_like(w)
    else:
        omega = _symmetric_matrix(
            "damping", damping.diag() if damping.dim() == 1 else damping, w.shape[0]
        )
    if step is not None and not 0 < step < math.inf:
        raise UsageError(f"frequency_dominance: found a step of {step}, expected a positive one.")
    if edges.clouds.count != 1:
        raise UsageError(
            f"frequency_dominance: found a batch of {edges.clouds.count} graphs, expected one: "
            "each has a spectrum of its own. Ask for each."
        )
    mu = torch.linalg.eigvalsh(w)
    highest = largest_laplacian_eigenvalue(edges)
    low, high = (_rate((1 - value) * w - omega, step) for value in (0.0, highest))
    if not edges.incoming.lengths.all():
        low = max(low, _rate(-omega, step))  # a node without edges is smooth, and has Ã = 0
    dominant = _larger(low, high)
    limit = {"low": 0.0, "high": highest / 2, "neither": math.nan}[dominant]
    return FrequencyDominance(
        dominant, limit, low, high, float(mu[0]), float(mu[-1]), highest, step
    )


def _rate(matrix: Tensor, step: float | None) -> float:
    """Largest exponential rate of `ẋ = x M`, or of its explicit Euler steps."""
    m = torch.linalg.eigvalsh(matrix)
    if step is None:
        return float(m[-1])
    return float((1 + step * m).abs().max().log() / step)


def _larger(low: float, high: float) -> Dominance:
    if low == high or abs(low - high) <= TIE * max(abs(low), abs(high)):
        return "neither"
    return "low" if low > high else "high"


def _laplacian(edges: Edges) -> scipy.sparse.csr_array:
    """`Δ` in float64, the rows of nodes without edges zero; repeated edges add up."""
    ends = edges.receiver.cpu().numpy(), edges.sender.cpu().numpy()
    weights = symmetric_weights(edges, torch.float64).cpu().numpy()
    shape = (edges.nodes, edges.nodes)
    has_edges = (edges.incoming.lengths > 0).double().cpu().numpy()
    adjacency = scipy.sparse.coo_array((weights, ends), shape=shape).tocsr()
    return (scipy.sparse.diags_array(has_edges) - adjacency).tocsr()


def _symmetric_matrix(name: str, matrix: Tensor, width: int) -> Tensor:
    """The matrix in float64 on the CPU.

    Raises:
        ShapeError: If it is not (width, width).
        UsageError: If it is not symmetric or not finite.
    """
    if matrix.shape != (width, width) or width == 0:
        raise ShapeError(
            f"frequency_dominance: found {name} {tuple(matrix.shape)}, expected a square matrix "
            "of the channels."
        )
    exact = matrix.detach().double().cpu()
    off = (exact - exact.T).abs().max() if bool(exact.isfinite().all()) else math.nan
    if not off <= 1e-5 * exact.abs().max():
        raise UsageError(
            f"frequency_dominance: found a {name} that differs from its transpose by {off:.2g}, "
            "expected a finite, symmetric matrix. Pass its symmetric part, (W + Wᵀ)/2, if that "
            "is what the model uses."
        )
    return (exact + exact.T) / 2


def _require_symmetric(where: str, edges: Edges) -> None:
    if not edges.is_symmetric:
        raise UsageError(
            f"{where}: found a directed graph, expected each edge in both directions. Add the "
            "reversed edges first."
        )
