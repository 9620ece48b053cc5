r"""Diffusion of several channels that drive each other, and messages of any form.

Onsager: the flux of a channel answers the differences of all of them,

.. math::
    \dot x = \sigma(\alpha) (\bar A x - x) L + \beta x(0), \qquad L = M M^T

with `L` symmetric by Onsager's reciprocal relations and positive semidefinite by the second law.

Messages: :math:`\dot x_i = \sum_j \psi(x_i, x_j)`, the general form of which a diffusion is the
case `ψ = w (x_j − x_i)`; with `ψ` antisymmetric, what one node loses another gains.

References: Reciprocal Relations in Irreversible Processes (Onsager, 1931); Beltrami Flow and Neural
Diffusion on Graphs (Chamberlain et al., 2021), arXiv:2110.09443, section 2; Neural Message Passing
for Quantum Chemistry (Gilmer et al., 2017), arXiv:1704.01212, eq. 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from eqflow.edges import Edges, edge_linear, segment_sum
from eqflow.nn.arguments import require_counts, require_edges, require_kind_of
from eqflow.nn.diffusion.grand import GRAND
from eqflow.nn.diffusion.operator import Coefficients
from eqflow.nn.diffusion.symmetric_matrices import SymmetricMatrix
from eqflow.nn.field import AbstractField


class Onsager(GRAND):
    """Attention diffusion whose channels mix by a symmetric, positive semidefinite matrix.

    Args:
        width: Channels C of a node's state.
        options: As in `GRAND`.
    """

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(width, **options)
        self.mixing = SymmetricMatrix(width, "positive")
        nn.init.eye_(self.mixing.free)

    def coefficients(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> Coefficients:
        """Those of `ẋ = σ(α) (Ā x − x) L + β x(0)`; arguments as in `AbstractDiffusion`."""
        found = super().coefficients(t, x, edges, context)
        return replace(found, mixing=self.mixing())


class MessagePassing(AbstractField):
    r"""`ẋ_i = Σ_j ψ(x_i, x_j)`, with :math:`\psi = V\, \mathrm{SiLU}(W_1 x_i + W_2 x_j + b)`.

    Args:
        width: Channels C of a node's state.
        hidden: Width of `ψ`.
        conserving: Whether :math:`\psi(x_i, x_j) - \psi(x_j, x_i)` is sent: on a graph with both
            directions of every edge the sum over nodes then stays what it is.
    """

    def __init__(self, width: int, hidden: int = 64, *, conserving: bool = False) -> None:
        super().__init__()
        require_counts("MessagePassing", width=width, hidden=hidden)
        self.width = width
        self.conserving = conserving
        self.receiver = nn.Linear(width, hidden)
        self.sender = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity, shape (N, C); time and context do not enter."""
        require_edges("MessagePassing", edges)
        require_kind_of("MessagePassing", self, x)
        sent = self._hidden(self.receiver(x), self.sender(x), edges)
        if self.conserving:
            sent = sent - self._hidden(self.sender(x), self.receiver(x), edges)
        # The last layer is linear: once a node serves for all of its edges.
        return self.out(segment_sum(sent, edges))

    def _hidden(self, at_receiver: Tensor, at_sender: Tensor, edges: Edges) -> Tensor:
        nothing = at_receiver.new_zeros(edges.count, 0)
        weight = at_receiver.new_zeros(at_receiver.shape[1], 0)
        return F.silu(edge_linear(at_receiver, at_sender, nothing, weight, edges))
