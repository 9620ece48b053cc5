"""A port of GRAND and BLEND as published, to be compared with: layers, blocks and their solver.

Written from the papers and from what their public code computes: dense features with dropout,
messages gathered and scattered edge by edge, torchdiffeq's dopri5 at the published tolerances, and
attention at every evaluation where it is not computed once. It is the least such a program can be:
no logging, no regularisation, no early stopping.

References: GRAND (Chamberlain et al., 2021), arXiv:2106.10934; Beltrami Flow and Neural Diffusion
on Graphs (Chamberlain et al., 2021), arXiv:2110.09443.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint


@dataclass(frozen=True)
class Settings:
    """Published settings of one data set; see `configs/experiment`."""

    width: int
    position_width: int
    heads: int
    attention_width: int
    time: float
    atol: float
    rtol: float
    dropout: float
    input_dropout: float
    by_column: bool
    nonlinear: bool


class PublishedDiffusion(nn.Module):
    """Encoder, attention diffusion, decoder.

    Args:
        features, classes: Of the data.
        encoding: Width of the positional encoding; 0 for GRAND.
        settings: Published settings.
    """

    def __init__(self, features: int, classes: int, encoding: int, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width + settings.position_width
        self.encode = nn.Linear(features, settings.width)
        self.place = nn.Linear(encoding, settings.position_width) if encoding else None
        self.query = nn.Linear(width, settings.attention_width)
        self.key = nn.Linear(width, settings.attention_width)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))
        self.decode = nn.Linear(width, classes)
        self.evaluations = 0

    def forward(self, x: Tensor, encoding: Tensor | None, edge_index: Tensor) -> Tensor:
        """Logits (N, K) of dense features (N, F) on edges (2, E), receivers first."""
        s = self.settings
        z = self.encode(F.dropout(x, s.input_dropout, self.training))
        if self.place is not None:
            u = self.place(F.dropout(encoding, s.input_dropout, self.training))
            z = torch.cat([z, u], 1)
        times = torch.tensor([0.0, s.time])
        rate = self.rate(z, edge_index)
        z = odeint(rate, z, times, method="dopri5", atol=s.atol, rtol=s.rtol)[1]
        return self.decode(F.dropout(z.relu(), s.dropout, self.training))

    def rate(self, z: Tensor, edge_index: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The right-hand side of a solve that starts from `z` (N, C)."""
        fixed = None if self.settings.nonlinear else self.attention(z, edge_index)

        def rate(_t: Tensor, state: Tensor) -> Tensor:
            self.evaluations += 1
            a = self.attention(state, edge_index) if fixed is None else fixed
            moved = state.new_zeros(state.shape).index_add(
                0, edge_index[0], a.unsqueeze(1) * state[edge_index[1]]
            )
            return self.alpha.sigmoid() * (moved - state) + self.beta * z

        return rate

    def attention(self, z: Tensor, edge_index: Tensor) -> Tensor:
        """Weights (E,), the mean over heads of squareplus, normalised by row or column."""
        s = self.settings
        receiver, sender = edge_index
        shape = (len(z), s.heads, s.attention_width // s.heads)
        q, k = self.query(z).view(shape)[receiver], self.key(z).view(shape)[sender]
        logits = (q * k).sum(2) / shape[2] ** 0.5
        positive = (logits + (logits.square() + 4).sqrt()) / 2
        ends = sender if s.by_column else receiver
        total = positive.new_zeros(len(z), s.heads).index_add(0, ends, positive)
        return (positive / (total[ends] + 1e-16)).mean(1)
