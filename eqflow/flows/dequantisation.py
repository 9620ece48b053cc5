r"""Discrete labels of points as continuous features, with the density of what was added.

A label `y` becomes a value `v ~ q(v | y, x)` in the set of values that stand for it (`preimages`).
Then :math:`\log p(y) \ge \mathbb E_q [\log p(v) - \log q(v | y, x)]`, where the average of
`p(v) / q(v)` itself is the probability of the set.

Reference: Argmax Flows and Multinomial Diffusion (Hoogeboom et al., 2021), arXiv:2102.05379,
eq. 3; Flow++ (Ho et al., 2019), arXiv:1902.00275, section 3.1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows.preimages import (
    from_category,
    from_unit_interval,
    to_category,
    to_unit_interval,
)
from eqflow.geometry import Segments, centred
from eqflow.nn.egnn import EGNN


class Labels(NamedTuple):
    """What points are.

    Attributes:
        kind: Place of each point's category in a vocabulary, shape (N,), int64.
        integers: Numbers whose order matters, such as charges, shape (N, I), int64.
    """

    kind: Tensor
    integers: Tensor


class Dequantised(NamedTuple):
    """Labels as continuous features.

    Attributes:
        v: Features, shape (N, K).
        log_q: Log-density of the features of each cloud, shape (B,), in nats.
    """

    v: Tensor
    log_q: Tensor


class AbstractDequantiser(nn.Module, ABC):
    """A distribution of features for every label.

    Args:
        kinds: Number of categories E.
        integers: Number of integers I of a point.

    Attributes:
        width: Number of features K of a point: E for the category, then I.

    Raises:
        UsageError: If there is no category, or a negative number of integers.
    """

    def __init__(self, kinds: int, integers: int = 0) -> None:
        super().__init__()
        if kinds < 1 or integers < 0:
            raise UsageError(
                f"dequantiser: found kinds={kinds}, integers={integers}; expected at least 1 and 0."
            )
        self.kinds = kinds
        self.integers = integers
        self.width = kinds + integers

    @abstractmethod
    def noise(self, rows: int, like: Tensor, source: torch.Generator) -> Tensor:
        """What `forward` is made of, shape (rows, K)."""

    @abstractmethod
    def forward(self, labels: Labels, x: Tensor, clouds: Segments, noise: Tensor) -> Dequantised:
        """Features for labels, a one-to-one function of the noise.

        Args:
            labels: What the points are.
            x: Centred positions, shape (N, d), in the unit of the data.
            clouds: Points of each cloud.
            noise: As `noise` draws it, shape (N, K).

        Raises:
            ShapeError: If labels or noise do not fit.
        """

    @abstractmethod
    def inverse(self, labels: Labels, x: Tensor, clouds: Segments, v: Tensor) -> Tensor:
        """The noise that `forward` makes `v` of, shape (N, K)."""

    def labels(self, v: Tensor) -> Labels:
        """The labels that features stand for: the largest component, and the integer below."""
        kind = v[:, : self.kinds].argmax(1)
        return Labels(kind, v[:, self.kinds :].nan_to_num().floor().to(torch.int64))

    def numbers(self, labels: Labels, like: Tensor) -> Tensor:
        """Categories as one-hot vectors, then the integers, shape (N, K)."""
        hot = one_hot(labels.kind, self.kinds)
        return torch.cat([hot, labels.integers], 1).to(like.dtype)

    def require(self, labels: Labels, values: Tensor) -> None:
        """Raise `ShapeError` where labels, and noise or features (N, K), do not fit."""
        rows = len(labels.kind)
        found = tuple(labels.integers.shape), tuple(values.shape)
        expected = (rows, self.integers), (rows, self.width)
        if found != expected:
            raise ShapeError(
                f"dequantiser: found integers and features of shapes {found} for {rows} points, "
                f"expected {expected}."
            )
        if rows and not 0 <= int(labels.kind.min()) <= int(labels.kind.max()) < self.kinds:
            raise ShapeError(
                f"dequantiser: found categories {int(labels.kind.min())} to "
                f"{int(labels.kind.max())}, expected 0 to {self.kinds - 1}."
            )


class UniformDequantiser(AbstractDequantiser):
    """Uniform in the unit cube above the one-hot vector and the integers: `log q = 0`."""

    def noise(self, rows: int, like: Tensor, source: torch.Generator) -> Tensor:
        """Uniform in [0, 1)."""
        return rng.uniform((rows, self.width), like, source)

    def forward(self, labels: Labels, x: Tensor, clouds: Segments, noise: Tensor) -> Dequantised:
        """Labels plus noise; arguments as in `AbstractDequantiser`."""
        self.require(labels, noise)
        return Dequantised(self.numbers(labels, noise) + noise, noise.new_zeros(clouds.count))

    def inverse(self, labels: Labels, x: Tensor, clouds: Segments, v: Tensor) -> Tensor:
        """Features less labels."""
        self.require(labels, v)
        return v - self.numbers(labels, v)


class GaussianDequantiser(AbstractDequantiser):
    """Normal around the one-hot vector and the middle between an integer and the next.

    Clusters well apart, as flow matching learns them best. A value that stands for another label
    has `log q = ∞`: it adds nothing to an average of `p(v) / q(v)`. With the default spread that is
    one in 10¹¹ atoms for a type, and one in 2 million for an integer, whose neighbours are nearer.

    Args:
        kinds, integers: As in `AbstractDequantiser`.
        spread: Standard deviation of each feature.

    Raises:
        UsageError: If the spread is not positive.
    """

    def __init__(self, kinds: int, integers: int = 0, spread: float = 0.1) -> None:
        super().__init__(kinds, integers)
        if not 0 < spread < math.inf:
            raise UsageError(f"dequantiser.spread: found {spread}, expected above 0.")
        self.spread = spread

    def noise(self, rows: int, like: Tensor, source: torch.Generator) -> Tensor:
        """Standard normal."""
        return rng.normal((rows, self.width), like, source)

    def forward(self, labels: Labels, x: Tensor, clouds: Segments, noise: Tensor) -> Dequantised:
        """Features and their density; arguments as in `AbstractDequantiser`."""
        self.require(labels, noise)
        v = self._middle(labels, noise) + self.spread * noise
        log_q = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) - math.log(self.spread)
        read = self.labels(v)
        lost = (read.kind != labels.kind) | (read.integers != labels.integers).any(1)
        log_q = log_q.sum(1).masked_fill(lost, math.inf)
        return Dequantised(v, clouds.sum(log_q))

    def inverse(self, labels: Labels, x: Tensor, clouds: Segments, v: Tensor) -> Tensor:
        """The distance from the middle in standard deviations."""
        self.require(labels, v)
        return (v - self._middle(labels, v)) / self.spread

    def _middle(self, labels: Labels, like: Tensor) -> Tensor:
        middle = self.numbers(labels, like)
        middle[:, self.kinds :] += 0.5
        return middle


class ArgmaxDequantiser(AbstractDequantiser):
    r"""A normal distribution carried onto the set of values that stand for a label.

    `u = ε` is standard normal, and `v` what `to_category` and `to_unit_interval` make of it, so
    :math:`\log q(v) = \log \mathcal N(u) - \log |\partial v / \partial u|`.
    """

    def noise(self, rows: int, like: Tensor, source: torch.Generator) -> Tensor:
        """Standard normal."""
        return rng.normal((rows, self.width), like, source)

    def forward(self, labels: Labels, x: Tensor, clouds: Segments, noise: Tensor) -> Dequantised:
        """Features and their density; arguments as in `AbstractDequantiser`."""
        self.require(labels, noise)
        mean, log_sigma = self.moments(labels, x, clouds, noise)
        u = mean + log_sigma.exp() * noise
        category, by_category = to_category(u[:, : self.kinds], labels.kind)
        integer, by_integer = to_unit_interval(u[:, self.kinds :], labels.integers)
        log_q = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) - log_sigma
        log_q = clouds.sum(log_q.sum(1) - by_category - by_integer.sum(1))
        return Dequantised(torch.cat([category, integer], 1), log_q)

    def inverse(self, labels: Labels, x: Tensor, clouds: Segments, v: Tensor) -> Tensor:
        """The noise; not finite where features stand for other labels."""
        self.require(labels, v)
        mean, log_sigma = self.moments(labels, x, clouds, v)
        category = from_category(v[:, : self.kinds], labels.kind)
        integer = from_unit_interval(v[:, self.kinds :], labels.integers)
        return (torch.cat([category, integer], 1) - mean) * torch.exp(-log_sigma)

    def moments(
        self, labels: Labels, x: Tensor, clouds: Segments, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of `u`, shape (N, K) each."""
        zero = torch.zeros_like(like)
        return zero, zero


class VariationalDequantiser(ArgmaxDequantiser):
    """`u` with moments that a network makes of labels and positions.

    The network is an EGNN on complete graphs whose node features are the one-hot category and the
    integers, and put out `(μ, log σ)`.

    Args:
        kinds, integers: As in `AbstractDequantiser`.
        width, layers: As in `EGNN`.
    """

    def __init__(self, kinds: int, integers: int = 0, width: int = 64, layers: int = 4) -> None:
        super().__init__(kinds, integers)
        self.network = EGNN(self.width, width, layers, output_features=2 * self.width)

    def moments(
        self, labels: Labels, x: Tensor, clouds: Segments, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the network puts out; invariant to motions of `x`."""
        x = centred(x, clouds)
        _, out = self.network(x, self.numbers(labels, x), Edges.complete(clouds))
        mean, log_sigma = out.chunk(2, -1)
        return mean, log_sigma
