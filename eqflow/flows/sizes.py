"""How many points a structure has: a categorical distribution with its own log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry import Clouds

# Probabilities kept in float32 need not add up to 1 more closely than this.
SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Probability of each number of points.

    Attributes:
        sizes: Numbers of points, rising, shape (M,), int64.
        log_probs: Their log-probabilities in nats, shape (M,), float64.

    Raises:
        UsageError: If sizes do not rise from 1 or more, or probabilities do not add up to 1.

    Example:
        >>> sizes = Sizes.of(Clouds(torch.zeros(7, 3), torch.tensor([0, 2, 4, 7])))
        >>> sizes.log_prob(torch.tensor([2, 3, 9])).exp().round(decimals=4)
        tensor([0.6667, 0.3333, 0.0000], dtype=torch.float64)
    """

    sizes: Tensor
    log_probs: Tensor

    def __post_init__(self) -> None:
        rising = (
            len(self.sizes) > 0 and int(self.sizes[0]) > 0 and bool((self.sizes.diff() > 0).all())
        )
        if not rising or self.sizes.shape != self.log_probs.shape:
            raise UsageError(
                f"sizes: found {self.sizes[:6].tolist()}… with {len(self.log_probs)} "
                "probabilities, expected rising numbers of points with one each."
            )
        total = float(self.log_probs.exp().sum())
        if not abs(total - 1) < SUM_TOLERANCE:
            raise UsageError(f"sizes: found probabilities that add up to {total}, expected 1.")

    @classmethod
    def of(cls, clouds: Clouds) -> Sizes:
        """The frequencies in a data set.

        Raises:
            UsageError: If there is no structure.
        """
        sizes, counts = clouds.sizes.cpu().unique(return_counts=True)
        return cls(sizes, (counts.double() / counts.sum()).log())

    def log_prob(self, sizes: Tensor) -> Tensor:
        """Log-probability of each size, shape (B,); −∞ for one that never occurred."""
        known, asked = self.sizes.to(sizes.device), sizes.contiguous()
        place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
        found = self.log_probs.to(sizes.device)[place]
        return torch.where(known[place] == asked, found, torch.full_like(found, float("-inf")))

    def places(self, clouds: Clouds) -> Tensor:
        """Place of each cloud's size among these, shape (B,), int64, where it is one of them."""
        return torch.searchsorted(self.sizes, clouds.sizes.cpu().contiguous())

    def draw(
        self,
        count: int,
        source: torch.Generator,
        sizes: int | Sequence[int] | None = None,
        least: int = 1,
    ) -> Tensor:
        """Sizes of `count` structures, shape (count,), int64.

        Args:
            count: How many.
            source: Where the draws come from.
            sizes: Fixed size of all, or of each; drawn by probability where None.
            least: Smallest size that may be drawn or asked for.

        Raises:
            UsageError: If a size is smaller, none is as large, or there are not `count` sizes.
        """
        if sizes is None:
            weights = self.log_probs.exp() * (self.sizes >= least)
            if not weights.any():
                raise UsageError(
                    f"sizes: found at most {int(self.sizes.max())} points in training structures, "
                    f"expected {least} or more; pass sizes=…."
                )
            return self.sizes[torch.multinomial(weights, count, replacement=True, generator=source)]
        lengths = torch.tensor(sizes, dtype=torch.int64)
        if lengths.dim() > 0 and len(lengths) != count:
            raise UsageError(
                f"sizes: found {len(lengths)} for {count} structures; pass one, or one of each."
            )
        if int(lengths.min()) < least:
            raise UsageError(f"sizes: found {int(lengths.min())}, expected at least {least}.")
        return lengths.expand(count)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for storing."""
        return {"sizes": self.sizes.tolist(), "log_probs": self.log_probs.tolist()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Sizes:
        """The inverse of `to_plain`."""
        sizes = torch.tensor(plain["sizes"], dtype=torch.int64)
        return cls(sizes, torch.tensor(plain["log_probs"], dtype=torch.float64))
