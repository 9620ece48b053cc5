r"""The path of categories that are masked one after the other, and its way back.

At time `t` a category is kept with probability `1 − t`, else masked, independently of all others:
none is at `t = 0` and all are at `t = 1`. From `t` to `s < t` a masked one is revealed with
probability

.. math::
    \frac{t - s}{t} \, \big(1 + \eta (1 - t)\big) ,

as a draw of the posterior given what is visible. For `η = 0` that is its chance exactly, and what a
step gets wrong is that those revealed in it do not see each other. With `η > 0` visible ones are
masked again at the rate `η`: that leaves the law of the path as it is and lets mistakes be
corrected, at the price of smaller steps, as more is revealed in each. The last step reveals all.

Reference: Generative Flows on Discrete State-Spaces: Enabling Multimodal Flows with Applications to
Protein Co-Design (Campbell et al., 2024), arXiv:2402.04997, section 4 and appendix F, whose time
runs from noise to data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.continuous import DATA


@dataclass(frozen=True)
class Masking:
    """How categories are masked and revealed.

    Attributes:
        categories: Their number K; the mask is one more, K.
        temperature: What logits are divided by before a category is drawn; below 1 the likely ones
            become more so.
        remasking: `η`.

    Raises:
        UsageError: If a value is out of range.

    Example:
        >>> path, kinds = Masking(2), torch.tensor([0, 1, 1])
        >>> source = torch.Generator().manual_seed(0)
        >>> path.masked(kinds, torch.tensor([0.0, 0.0, 1.0]), source)
        tensor([0, 1, 2])
    """

    categories: int
    temperature: float = 1.0
    remasking: float = 0.0

    def __post_init__(self) -> None:
        if self.categories < 1:
            raise UsageError(f"Masking: found categories={self.categories}, expected at least 1.")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature: found {self.temperature}, expected above 0.")
        if not 0 <= self.remasking < math.inf:
            raise UsageError(f"remasking: found {self.remasking}, expected 0 or more.")

    @property
    def mask(self) -> int:
        """What stands for a category that is not known."""
        return self.categories

    def masked(self, kinds: Tensor, t: Tensor, source: torch.Generator) -> Tensor:
        """Categories at times, each masked with probability `t`, shape (N,) all."""
        return kinds.masked_fill(rng.uniform(kinds.shape, t, source) < t, self.mask)

    def context(self, kinds: Tensor, like: Tensor, others: Tensor | None) -> Tensor:
        """Context of a field: categories or the mask one-hot, and behind them other features.

        Args:
            kinds: Of each point, shape (N,).
            like: Positions in the flow, whose dtype it has.
            others: Shape (N, C), or None.

        Returns:
            Shape (N, K + 1 + C).
        """
        known = one_hot(kinds, self.categories + 1).to(like.dtype)
        return known if others is None else torch.cat([known, others], 1)

    def step(
        self, kinds: Tensor, logits: Tensor, t: float, s: float, source: torch.Generator
    ) -> Tensor:
        """Categories at time `s < t` from those at `t`, shape (N,).

        Args:
            kinds: At `t`, the mask among them, shape (N,).
            logits: Log-posterior of each point's category given what is visible, shape (N, K).
            t, s: Times; at `s = 0` nothing is masked.
            source: Where draws come from, as many as there are points whatever happens to them.
        """
        reveal, hide = 1.0, 0.0
        if s > DATA:
            reveal = (t - s) / t * (1 + self.remasking * (1 - t))
            hide = (t - s) * self.remasking
        chance = rng.uniform(kinds.shape, logits, source)
        # The largest of logits with Gumbel noise is a draw of their softmax.
        gumbel = -(-rng.uniform(tuple(logits.shape), logits, source).log()).log()
        drawn = (logits / self.temperature + gumbel).argmax(1)
        is_masked = kinds == self.mask
        revealed = torch.where(is_masked & (chance < reveal), drawn, kinds)
        return revealed.masked_fill(~is_masked & (chance < hide), self.mask)
