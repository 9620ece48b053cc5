r"""Embeddings in the Poincaré ball, where trees have room: volume grows exponentially with radius.

Points are of the open unit ball with curvature −1. Between them, and to and from the tangent space
at the origin:

.. math::
    d(u, v) = 2 \operatorname{arsinh} \frac{\lVert u - v \rVert}
              {\sqrt{(1 - \lVert u \rVert^2)(1 - \lVert v \rVert^2)}}, \qquad
    \exp_0 v = \tanh(\lVert v \rVert) \frac{v}{\lVert v \rVert}

and `v → (−w) ⊕ v` is the isometry that takes `w` to the origin. The form with arsinh keeps its
digits for close points, where `arcosh(1 + y)` loses them. The same distance across
edges, within a diffusivity, is `squared_hyperbolic_distance` of `eqflow.nn.diffusion.hyperbolic`.

References: Poincaré Embeddings for Learning Hierarchical Representations (Nickel, Kiela, 2017),
arXiv:1705.08039, eq. 1-6; Hyperbolic Neural Networks (Ganea, Bécigneul, Hofmann, 2018),
arXiv:1805.09112, eq. 4 and lemma 2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.graphs.matrices import require_width
from eqflow.nn.diffusion.hyperbolic import RIM, squared_arcosh_of_one_plus

# Points of an embedding stay so far within: 1 − ‖u‖² is twice what distances count as the rim.
LARGEST_NORM = 1 - RIM
# Below it, tanh(√s) / √s and artanh(√s) / √s are four terms of their series in float64.
SMALL = 1e-4
START_RADIUS = 1e-3
PAIRS_PER_STEP = 1024


def poincare_distance(u: Tensor, v: Tensor) -> Tensor:
    """`d(u, v)`, between points of one row.

    Args:
        u, v: Shape (…, P), those beyond `1 − ‖u‖² = 1e-5` count as being there.

    Returns:
        Shape (…). Differentiable any number of times where points differ; where they coincide the
        derivative is taken to be 0.
    """
    y = 2 * (u - v).square().sum(-1) / (_room(u) * _room(v))
    coincide = y == 0
    away = torch.where(coincide, torch.ones_like(y), y)
    return torch.where(coincide, torch.zeros_like(y), squared_arcosh_of_one_plus(away).sqrt())


def mobius_add(u: Tensor, v: Tensor) -> Tensor:
    r"""`u ⊕ v`, the translation of the ball that takes the origin to `u`, at `v`.

    .. math::
        u \oplus v = \frac{(1 + 2 \langle u, v \rangle + \lVert v \rVert^2) u
        + (1 - \lVert u \rVert^2) v}
        {1 + 2 \langle u, v \rangle + \lVert u \rVert^2 \lVert v \rVert^2}

    Args:
        u, v: Points of the ball, shape (…, P).

    Returns:
        Shape (…, P).
    """
    uv = (u * v).sum(-1, keepdim=True)
    uu = u.square().sum(-1, keepdim=True)
    vv = v.square().sum(-1, keepdim=True)
    return ((1 + 2 * uv + vv) * u + (1 - uu) * v) / (1 + 2 * uv + uu * vv)


def exp_at_origin(v: Tensor) -> Tensor:
    """The point that the geodesic from the origin along `v` reaches, at distance `2 ‖v‖`.

    Args:
        v: Tangent vectors at the origin, shape (…, P), of any length.

    Returns:
        Shape (…, P), within the ball but for rounding: see `into_ball`.
    """
    s, r, is_small = _radius(v)
    series = 1 - s * (1 / 3 - s * (2 / 15 - s * 17 / 315))
    return v * torch.where(is_small, series, r.tanh() / r)


def log_at_origin(u: Tensor) -> Tensor:
    """The inverse of `exp_at_origin`; shape (…, P) both."""
    s, r, is_small = _radius(u)
    series = 1 + s * (1 / 3 + s * (1 / 5 + s / 7))
    return u * torch.where(is_small, series, r.clamp(max=LARGEST_NORM).atanh() / r)


def into_ball(u: Tensor) -> Tensor:
    """Points further out than `1 − 1e-5` drawn in to there, shape (…, P) both."""
    norm = u.norm(dim=-1, keepdim=True)
    return torch.where(norm > LARGEST_NORM, u * (LARGEST_NORM / norm.clamp(min=1e-30)), u)


def poincare_embedding(
    edges: Edges,
    width: int,
    seed: int = 0,
    epochs: int = 300,
    burn_in: int = 20,
    negatives: int = 10,
    rate: float = 0.1,
) -> Tensor:
    r"""Positions in the ball in which neighbours are nearer than others, trained by descent there.

    .. math::
        \mathcal{L} = -\sum_{(u, v)} \log \frac{e^{-d(u, v)}}{\sum_{v'} e^{-d(u, v')}}, \qquad
        u \leftarrow \mathrm{proj}\Big(u - \eta \frac{(1 - \lVert u \rVert^2)^2}{4} \nabla_u
        \mathcal{L}\Big)

    over both orders of every pair joined by an edge, `v'` being `v` and random nodes not joined to
    `u`. Points begin near the origin, and for the first `burn_in` epochs move by a tenth, so that
    they find their directions before they move outwards. Every graph of a batch is trained on its
    own with the same draws, so it gets what it would get alone. An epoch takes 0.07 CPU-seconds on
    Cora.

    Args:
        edges: The graph; direction, repetition and self loops make no difference.
        width: Dimension P of the ball.
        seed: Of start, order and negatives: the same seed gives the same embedding.
        epochs: Passes over all pairs.
        burn_in: Of these, at the reduced rate.
        negatives: Random nodes a pair.
        rate: `η`, the step for one pair.

    Returns:
        Shape (N, P), float64, norms at most `1 − 1e-5`. Nodes without neighbours stay within 1e-3
        of the origin or are pushed outwards as negatives of others.

    Raises:
        UsageError: If a setting is out of range.
    """
    require_width("poincare_embedding", width)
    _require_settings(epochs, burn_in, negatives, rate)
    found = []
    ptr = edges.clouds.ptr.tolist()
    rows = edges.incoming.ptr.tolist()
    ends = torch.stack([edges.receiver, edges.sender]).cpu()
    for first, last in pairwise(ptr):
        like = torch.zeros(0, dtype=torch.float64)
        source = rng.generator(seed, "poincare embedding")
        u = START_RADIUS * (2 * rng.uniform((last - first, width), like, source) - 1) / width**0.5
        ours = ends[:, rows[first] : rows[last]] - first
        rates = [rate / 10] * burn_in + [rate] * (epochs - burn_in)
        found.append(descend(u, ours, rates, negatives, source, poincare_distance, _step))
    return torch.cat(found) if found else torch.zeros(0, width, dtype=torch.float64)


def descend(
    u: Tensor,
    ends: Tensor,
    rates: list[float],
    negatives: int,
    source: torch.Generator,
    distance: Callable[[Tensor, Tensor], Tensor],
    step: Callable[[Tensor, Tensor, float], Tensor],
) -> Tensor:
    """Stochastic descent of the loss above in any space.

    Args:
        u: Where points begin, shape (n, P).
        ends: Joined nodes, shape (2, E).
        rates: Of each epoch.
        negatives: Random nodes a pair.
        source: Of order and negatives.
        distance: `d(u, v)` of rows.
        step: New points from points, Euclidean gradients and a rate.
    """
    n = len(u)
    ends = ends[:, ends[0] != ends[1]]
    joined = torch.cat([ends[0] * n + ends[1], ends[1] * n + ends[0]]).unique()
    if not len(joined):
        return u
    for rate in rates:
        order = rng.permutation(len(joined), source)
        for chosen in joined[order].split(PAIRS_PER_STEP):
            one, other = chosen // n, chosen % n
            drawn = torch.randint(0, n, (len(chosen), negatives), generator=source)
            is_near = (drawn == one[:, None]) | _contains(joined, one[:, None] * n + drawn)
            u = u.detach().requires_grad_()
            with torch.enable_grad():
                candidates = torch.cat([other[:, None], drawn], dim=1)
                d = distance(F.embedding(one, u)[:, None], F.embedding(candidates, u))
                excluded = F.pad(is_near, (1, 0), value=False)
                logits = (-d).masked_fill(excluded, float("-inf"))
                loss = (logits.logsumexp(1) - logits[:, 0]).sum()
                (gradient,) = torch.autograd.grad(loss, u)
            u = step(u.detach(), gradient, rate)
    return u.detach()


def _step(u: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Descent along the Riemannian gradient: the metric is `4 / (1 − ‖u‖²)²` times Euclid's."""
    return into_ball(u - rate * (1 - u.square().sum(-1, keepdim=True)).square() / 4 * gradient)


def _contains(rising: Tensor, values: Tensor) -> Tensor:
    """Whether each of `values` is among the `rising` ones."""
    place = torch.searchsorted(rising, values).clamp(max=len(rising) - 1)
    return rising[place] == values


def _room(u: Tensor) -> Tensor:
    """`1 − ‖u‖²`, at least that of the rim."""
    return (1 - u.square().sum(-1)).clamp(min=RIM)


def _radius(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`‖v‖²`, `‖v‖` where it is not small and 1 where it is, and where it is."""
    s = v.square().sum(-1, keepdim=True)
    is_small = s < SMALL
    return s, torch.where(is_small, torch.ones_like(s), s).sqrt(), is_small


def _require_settings(epochs: int, burn_in: int, negatives: int, rate: float) -> None:
    if not (0 <= burn_in <= epochs and negatives >= 1 and 0 < rate < float("inf")):
        raise UsageError(
            f"poincare_embedding: found epochs = {epochs}, burn_in = {burn_in}, negatives = "
            f"{negatives}, rate = {rate}; expected 0 ≤ burn_in ≤ epochs, at least one negative and "
            "a positive rate."
        )
