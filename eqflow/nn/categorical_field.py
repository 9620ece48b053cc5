r"""The velocity of positions and categories, whose features move as the posterior says.

A point of category `k` has features `h ~ N(a e_k, σ²)` at `t = 0`, and along straight paths to
independent standard normal noise

.. math::
    h_t \mid k \sim \mathcal N\big((1 - t) a e_k,\, \sigma_t^2\big), \qquad
    \sigma_t^2 = (1 - t)^2 \sigma^2 + t^2 .

Given the category the velocity is known, so that only the category has to be learned: with
:math:`r_t = \dot \sigma_t / \sigma_t = (t - (1 - t) \sigma^2) / \sigma_t^2` and the posterior `p`,

.. math::
    \mathbb E[\dot h \mid x_t, h_t] = r_t h_t - a \, (1 + (1 - t) r_t) \, p , \qquad
    p = \mathrm{softmax}\big(\ell + (1 - t)\, a \, h_t / \sigma_t^2 \big) .

The second term of the logits is what a point's own features say, and exact; the first, `ℓ`, is what
the network reads off the others and off the positions. With nothing learned features end in one of
the categories' densities; a network that jumps about bends these.

Reference: Variational Flow Matching for Graph Generation (Eijkelboom et al., 2024),
arXiv:2406.04843, which predicts the categories alike, without a share for a point's own features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from eqflow.edges import Dual, Edges
from eqflow.errors import UsageError
from eqflow.geometry import Segments, centred, split_state
from eqflow.nn.conditioning import Conditioning
from eqflow.nn.egcl import CoordinateUpdate
from eqflow.nn.egnn import EGNN
from eqflow.nn.exact_trace import is_linearisable, shift_features_and_trace
from eqflow.nn.field import AbstractField


class CategoricalVelocity(NamedTuple):
    """A velocity and the posterior it was made of.

    Attributes:
        value: Shape (N, d + K).
        logits: Unnormalised log-posterior of each point's category, shape (N, K).
    """

    value: Tensor
    logits: Tensor


class CategoricalEGNNField(AbstractField):
    r"""The field of positions and one category a point.

    :math:`\dot x = x^L - x + \frac{2 t - 1}{(1 - t)^2 + t^2} x` with
    :math:`(x^L, \ell) = \mathrm{EGNN}(x, [\mathrm{softmax}(\cdot), \mathrm{context}, \tau(t)])`,
    the mean removed. The term in `x` is the velocity if data were normal and noise independent,
    so that the network has the rest to learn. The network sees a point's features as the
    posterior that they alone imply. A state is `[x, h]`, shape (N, d + K).

    Args:
        categories: Their number K.
        feature_scale: `a`, in the units of the flow: the smaller, the later on the way from noise
            are categories decided.
        feature_spread: `σ`, likewise.
        context_features: Width of the conditioning node features, which stay.
        width, layers, attention, coordinate_update, coordinate_range: As in `EGNN`.
        time_frequencies: As in `Conditioning`.
        cutoff: Connect points within this distance (in the unit of `x`), their messages ending
            smoothly; complete graphs where None.
        radial: As in `EGNN`.

    Raises:
        UsageError: If there is no category, or an option is out of range.
    """

    is_equivariant = True

    def __init__(
        self,
        categories: int,
        feature_scale: float = 1.0,
        feature_spread: float = 0.1,
        context_features: int = 0,
        width: int = 64,
        layers: int = 6,
        *,
        attention: bool = False,
        coordinate_update: CoordinateUpdate = "stabilized",
        coordinate_range: float | None = None,
        time_frequencies: int = 3,
        cutoff: float | None = None,
        radial: int = 0,
    ) -> None:
        super().__init__()
        if categories < 1 or min(feature_spread, feature_scale) <= 0:
            raise UsageError(
                f"CategoricalEGNNField: found categories={categories}, "
                f"feature_scale={feature_scale}, feature_spread={feature_spread}; expected at "
                "least 1 category, and positive lengths."
            )
        self.conditioning = Conditioning(context_features, time_frequencies)
        self.state_features = categories
        self.feature_scale = feature_scale
        self.feature_spread = feature_spread
        self.context_features = context_features
        self.cutoff = cutoff
        self.message_width = width
        self.egnn = EGNN(
            categories + self.conditioning.width,
            width,
            layers,
            attention=attention,
            coordinate_update=coordinate_update,
            coordinate_range=coordinate_range,
            input_distance=True,
            radial=radial,
            cutoff=cutoff,
            output_features=categories,
        )

    @property
    def carries_tangents(self) -> bool:
        """Whether `pushforward` is that of this very `forward`, also in its network."""
        return super().carries_tangents and self.egnn.is_as_made

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`."""
        return self.velocity_and_logits(t, x, edges, context).value

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> CategoricalVelocity:
        """The velocity and what it takes the categories for; arguments as in `forward`."""
        path = self._path(t, edges.clouds)
        x, h = split_state(x, self.state_features)
        fixed = self.conditioning(t, edges.clouds, context)
        x = centred(x, edges.clouds)
        own = (path.evidence * h).softmax(-1)
        moved, learned = self.egnn(x, torch.cat([own, fixed], -1), edges)
        logits = learned + path.evidence * h
        dx = moved - x + path.contraction * x
        dh = path.rate * h - path.pull * logits.softmax(-1)
        return CategoricalVelocity(_joined((dx, dh), edges.clouds), logits)

    def pushforward(
        self, t: Tensor, x: Dual, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity and tangents; arguments as in `AbstractField`."""
        path = self._path(t, edges.clouds)
        along = _Path(*(each.unsqueeze(1) for each in path))
        fixed = self.conditioning(t, edges.clouds, context)
        (x0, h), (x1, dh) = (split_state(part, self.state_features) for part in _both(x))
        x0, x1 = centred(x0, edges.clouds), centred(x1, edges.clouds)
        evidence = Dual(path.evidence * h, along.evidence * dh)
        own, d_own = _softmax(evidence)
        given = Dual(torch.cat([own, fixed], -1), pad(d_own, (0, fixed.shape[-1])))
        moved, learned = map(_both, self.egnn.pushforward(Dual(x0, x1), given, edges))
        p, dp = _softmax(Dual(*(a + b for a, b in zip(learned, _both(evidence), strict=True))))
        value = moved[0] - x0 + path.contraction * x0, path.rate * h - path.pull * p
        tangent = moved[1] - x1 + along.contraction * x1, along.rate * dh - along.pull * dp
        return _joined(value, edges.clouds), _joined(tangent, edges.clouds)

    def exact_trace(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Velocity and divergence on complete graphs; arguments as in `AbstractField`."""
        if not edges.is_complete or not is_linearisable(self.egnn):
            return None
        clouds, path = edges.clouds, self._path(t, edges.clouds)
        x, h = split_state(x, self.state_features)
        x, fixed = centred(x, clouds), self.conditioning(t, clouds, context)
        own = (path.evidence * h).softmax(-1)
        given = torch.cat([own, fixed], -1)
        found = shift_features_and_trace(self.egnn, x, given, clouds, self.state_features)
        p = (found.out + path.evidence * h).softmax(-1)
        dx, dh = found.shift + path.contraction * x, path.rate * h - path.pull * p

        # ∂p/∂h = (1 − t) a / σ² · C_p (J C_own + 1), with C the covariance of a category.
        through = torch.einsum("nij,njk,nki->n", _covariance(p), found.blocks, _covariance(own))
        by_itself = 1 - p.square().sum(-1)
        of_features = self.state_features * path.rate.squeeze(1) - (
            path.pull * path.evidence
        ).squeeze(1) * (through + by_itself)
        # A cloud of n points moves in the n − 1 dimensions that its centre leaves.
        of_positions = x.shape[1] * clouds.sum(path.contraction.squeeze(1))
        of_positions = of_positions * (1 - 1 / clouds.lengths.clamp(min=1).to(of_positions.dtype))
        trace = found.trace + of_positions + clouds.sum(of_features)
        return _joined((dx, dh), clouds), trace

    def _path(self, t: Tensor, clouds: Segments) -> _Path:
        a, sigma = self.feature_scale, self.feature_spread
        s = clouds.expand(t.expand(clouds.count)).unsqueeze(1)
        variance = (1 - s).square() * sigma**2 + s.square()
        rate = (s - (1 - s) * sigma**2) / variance
        return _Path(
            contraction=(2 * s - 1) / ((1 - s).square() + s.square()),
            evidence=(1 - s) * a / variance,
            rate=rate,
            pull=a * (1 + (1 - s) * rate),
        )


class _Path(NamedTuple):
    """Functions of time at each point, shape (N, 1).

    Attributes:
        contraction: Rate of positions if they were normal.
        evidence: What features are multiplied by to be a log-posterior, `(1 − t) a / σ_t²`.
        rate: `r_t`.
        pull: `a (1 + (1 − t) r_t)`.
    """

    contraction: Tensor
    evidence: Tensor
    rate: Tensor
    pull: Tensor


def _both(dual: Dual) -> tuple[Tensor, Tensor]:
    """Value and tangent, the latter zeros along no direction where there is none."""
    value, tangent = dual
    return value, value.new_zeros(len(value), 0, value.shape[1]) if tangent is None else tangent


def _covariance(p: Tensor) -> Tensor:
    """That of the one-hot vector of a category of probabilities (N, K), shape (N, K, K)."""
    return p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)


def _softmax(logits: Dual) -> tuple[Tensor, Tensor]:
    """Probabilities (N, K) and their tangents (N, S, K)."""
    value, tangent = _both(logits)
    p = value.softmax(-1)
    weighted = p.unsqueeze(1) * tangent
    return p, weighted - p.unsqueeze(1) * weighted.sum(-1, keepdim=True)


def _joined(parts: tuple[Tensor, Tensor], clouds: Segments) -> Tensor:
    """Rates of positions, their mean removed, and of features."""
    return torch.cat([centred(parts[0], clouds), parts[1]], -1)
