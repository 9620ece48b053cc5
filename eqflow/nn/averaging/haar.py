r"""Averaging over all rotations by sampling: an unbiased estimate with its standard error.

:math:`\int ρ_2(g)\, Φ(ρ_1(g)^{-1} x)\, dν(g) ≈ S^{-1} \sum_s ρ_2(g_s)\, Φ(ρ_1(g_s)^{-1} x)`, with
`g_s` drawn from the Haar measure ν of O(d) or SO(d). The integral is equivariant; the estimate is
so in expectation only, and misses by its standard error, `σ / √S` for a spread σ of the terms.

A finite group within makes the spread smaller and takes no draws: with `Φ = GroupAverage(…, "I")`
each draw is a coset of the icosahedral group, whose mean is exact for all that is a polynomial in
the rotation of degree 5 or less; `"Ci"` does away with what has the wrong parity. A finite group
outside, `GroupAverage(HaarAverage(…), "Oh")`, makes the estimate exactly equivariant under it.

Reference: Frame Averaging for Invariant and Equivariant Network Design (Puny et al., 2021),
arXiv:2110.03336, section 2; How to Generate Random Matrices from the Classical Compact
Groups (Mezzadri, 2007), arXiv:math-ph/0609050.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.geometry import Segments, random_orthogonal
from eqflow.geometry.euclidean import EuclideanGroup, euclidean_group
from eqflow.geometry.representations import representation
from eqflow.nn.arguments import require_counts
from eqflow.nn.averaging.features import Backbone
from eqflow.nn.averaging.group_average import placed, relative
from eqflow.nn.averaging.inputs import checked_input, require_callable
from eqflow.nn.averaging.moved import Elements, moved_outputs


class Estimate(NamedTuple):
    """A sampled mean and how far it is off.

    Attributes:
        value: The mean over draws, shape (M, k).
        standard_error: Standard deviation of each entry of it over the draws, estimated from their
            spread, shape (M, k), without a gradient.
    """

    value: Tensor
    standard_error: Tensor


class HaarAverage(nn.Module):
    """A backbone averaged over random rotations; equivariant in expectation only.

    The draws are those of `seed`, the same in each call and for all clouds: the output is a
    function of its input, and a cloud's does not depend on the others of its batch. Pass another
    seed to the call for new draws, as in training.

    Args:
        backbone: As in `GroupAverage`.
        group: `"O(d)"` or `"SO(d)"` about the origin, `"E(d)"` or `"SE(d)"` about each cloud's
            centre of mass, with a number for d. Translations are exact.
        output: How the output moves, as in `GroupAverage`.
        features: How the features `h` of a point move, in the same words.
        samples: Number of draws S.
        seed: The draws are a function of it.
        rows: Most points in one call of the backbone; the batch itself is not taken apart.

    Raises:
        UsageError: If there is no such group, output or features, the backbone cannot be called, or
            a number is wrong.

    Example:
        >>> import torch
        >>> from eqflow.nn.averaging import HaarAverage
        >>> first = lambda x, ptr, h: x[:, :1].square()
        >>> model = HaarAverage(first, "SO(3)", output="scalar", samples=2000)
        >>> mean, error = model.with_error(torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([0, 1]))
        >>> bool((mean - 3).abs() < 5 * error), bool(error < 0.1)
        (True, True)
    """

    def __init__(
        self,
        backbone: Backbone,
        group: str = "E(3)",
        output: str = "vector",
        features: str = "scalar",
        *,
        samples: int = 64,
        seed: int = 0,
        rows: int = 65536,
    ) -> None:
        super().__init__()
        require_callable(backbone, "HaarAverage")
        require_counts("HaarAverage", samples=samples, rows=rows)
        self.backbone = backbone
        self.group: EuclideanGroup = euclidean_group(group)
        if not self.group.rotates:
            raise UsageError(
                f"group: {self.group} has no rotations to draw, expected 'O(d)', 'SO(d)', 'E(d)' "
                "or 'SE(d)' with a number for d. FrameAverage is exact for translations."
            )
        self.output = representation(output, self.group.dimension)
        self.features = representation(features, self.group.dimension)
        self.samples = samples
        self.seed = seed
        self.rows = rows

    def forward(
        self,
        x: Tensor,
        ptr: Tensor | Segments,
        h: Tensor | None = None,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """The mean over draws.

        Args:
            x: Finite positions, shape (N, d).
            ptr: Start of each cloud, shape (B + 1,).
            h: Features of the points, shape (N, F), which move as `features` says.
            seed: Draws of another seed than that of the model.

        Returns:
            Shape (N, k) or (B, k), as the backbone's.

        Raises:
            ShapeError: If a shape does not fit, or the backbone's output is none of that kind.
            UsageError: If the backbone's output is no tensor of floating-point numbers.
            DataError: If a position or a feature is not finite.
        """
        return self._estimate(x, ptr, h, seed).value

    def with_error(
        self,
        x: Tensor,
        ptr: Tensor | Segments,
        h: Tensor | None = None,
        *,
        seed: int | None = None,
    ) -> Estimate:
        """The mean over draws, and its standard error; arguments and errors of a call.

        Raises:
            UsageError: If there is a single draw, which has no spread.
        """
        if self.samples < 2:
            raise UsageError("samples: found 1, expected at least 2 for a standard error.")
        return self._estimate(x, ptr, h, seed)

    def _estimate(
        self, x: Tensor, ptr: Tensor | Segments, h: Tensor | None, seed: int | None
    ) -> Estimate:
        clouds = checked_input(x, ptr, h, self.group.dimension, self.features, "HaarAverage")
        batch, centre = relative(x, clouds, h, self.features, self.group.translates)
        rotation = self.rotations(self.seed if seed is None else seed)
        elements = Elements(rotation, None, self.features, self.output)
        parts = moved_outputs(self.backbone, batch, elements, self.rows, "HaarAverage")
        # Means and squared deviations of parts are joined: sums of squares would lose digits.
        first = next(parts)
        mean, deviations, count = first.mean(0), _deviations(first), len(first)
        for part in parts:
            step, total = part.mean(0) - mean, count + len(part)
            mean = mean + step * (len(part) / total)
            between = step.detach().square() * (count * len(part) / total)
            deviations = deviations + _deviations(part) + between
            count = total
        error = (deviations / max(1, count - 1) / count).sqrt()
        return Estimate(placed(mean, centre, clouds, self.output), error)

    def rotations(self, seed: int) -> Tensor:
        """The draws of a seed, shape (S, d, d), float64; on any device the same."""
        source = rng.generator(seed, "averaging", "haar")
        like = torch.zeros((), dtype=torch.float64)
        return random_orthogonal(
            self.samples, self.group.dimension, like, source, proper=self.group.is_proper
        )

    def extra_repr(self) -> str:
        """The group and how outputs move, for `print`."""
        return (
            f"group='{self.group}', output={self.output.name!r}, features={self.features.name!r}, "
            f"samples={self.samples}, seed={self.seed}"
        )


def _deviations(values: Tensor) -> Tensor:
    """Sum of squared differences from the mean, (E, M, k) to (M, k)."""
    values = values.detach()
    return (values - values.mean(0)).square().sum(0)
