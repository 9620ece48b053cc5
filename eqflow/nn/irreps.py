r"""Messages of irreps of O(3): spherical tensors multiplied by harmonics of the edge.

A node holds `U` channels of each irrep `l = 0 … lmax` of natural parity, `0e + 1o + 2e + …`. With
the harmonics `Y` of the edge and the coefficients `C` of Wigner's 3j symbols, as e3nn has them, its
message in each channel `u` is

.. math::
    m_{ij}^{l_3} = \sum_{l_1, l_2} R_u^{l_1 l_2 l_3}(h_i^0, h_j^0, d_{ij}) \;
        h_{j,u}^{l_1} \otimes_C Y^{l_2}(x_j - x_i),

a sum over paths with :math:`|l_1 - l_2| \le l_3 \le l_1 + l_2` and even :math:`l_1 + l_2 + l_3`. It
is e3nn's `TensorProduct` with connections `uvu`; its coefficients are kept in double precision, so
that a model is equivariant to rounding in whatever type it computes.

References: Tensor Field Networks (Thomas et al., 2018), arXiv:1802.08219, section 4.1; E(3)-
equivariant graph neural networks for interatomic potentials (NequIP, Batzner et al., 2022),
arXiv:2101.03164, eq. 6-9. That `R` reads the scalars of both ends is as in EGNN's `φ_e`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqflow.edges import Edges, edge_linear, gather, segment_sum
from eqflow.geometry.segments import lasting

# Type and place in which coefficients are made; others are rounded from there.
EXACTLY = (torch.float64, torch.device("cpu"))


class Path(NamedTuple):
    """Orders of what meets in a tensor product: of the sender, of the edge, and of the message."""

    sender: int
    edge: int
    message: int


def natural_paths(sender: int, edge: int, message: int) -> tuple[Path, ...]:
    """All paths between irreps of natural parity up to the given orders, by their message.

    >>> natural_paths(1, 1, 1)[:2]
    (Path(sender=0, edge=0, message=0), Path(sender=1, edge=1, message=0))
    """
    orders = product(range(message + 1), range(sender + 1), range(edge + 1))
    return tuple(
        Path(l1, l2, l3)
        for l3, l1, l2 in orders
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    )


def block(order: int) -> slice:
    """Where the components of an irrep stand among all up to it."""
    return slice(order**2, (order + 1) ** 2)


def _by_order(h: Tensor) -> tuple[Tensor, ...]:
    """Irreps one by one, (N, (lmax + 1)², U) to (N, 2 l + 1, U) each.

    In one operation, whose derivative is one: that of a slice is as large as all of `h`.
    """
    return h.split([2 * order + 1 for order in range(round(h.shape[1] ** 0.5))], 1)


def solid_harmonics(x: Tensor, lmax: int) -> Tensor:
    r"""Homogeneous polynomials `Y^l(x)`, on the unit sphere the real spherical harmonics.

    :math:`Y^{l+1} \propto Y^l \otimes_C x`, so they are smooth everywhere, and zero at the origin
    for `l > 0`. Normalised so that the mean square of a component on the sphere is 1.

    Args:
        x: Vectors, shape (E, 3).
        lmax: Highest order.

    Returns:
        Shape (E, (lmax + 1)²), order after order.
    """
    found = [x.new_ones(len(x), 1)]
    for step in _steps(lmax, x.dtype, x.device):
        pairs = (found[-1].unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        found.append(pairs @ step)
    return torch.cat(found, 1)


@cache
@lasting
def _steps(lmax: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """What makes `Y^{l + 1}` of products of `Y^l` and `x`, shape (3 (2l + 1), 2l + 3) each."""
    if (dtype, device) != EXACTLY:
        return tuple(step.to(device, dtype) for step in _steps(lmax, *EXACTLY))
    from e3nn import o3

    point = torch.tensor([[0.48, 0.6, 0.64]], dtype=torch.float64)
    known = o3.spherical_harmonics(
        list(range(lmax + 1)), point, normalize=False, normalization="component"
    )
    steps = []
    for order in range(lmax):
        step = o3.wigner_3j(order, 1, order + 1, dtype=torch.float64).flatten(0, 1)
        made = (known[:, block(order)].unsqueeze(2) * point.unsqueeze(1)).flatten(1) @ step
        target = known[:, block(order + 1)]
        step = step * (made * target).sum() / made.square().sum()
        steps.append(step)
    return tuple(steps)


@cache
@lasting
def _coefficients(
    paths: tuple[Path, ...], lmax: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """`C` of the paths to each message, from harmonics to a matrix from senders' components.

    Shape ((lmax + 1)², (2 l_3 + 1) Σ (2 l_1 + 1)) each, scaled so that a message has components of
    mean square 1 where those of senders and harmonics do.
    """
    if (dtype, device) != EXACTLY:
        return tuple(table.to(device, dtype) for table in _coefficients(paths, lmax, *EXACTLY))
    from e3nn import o3

    found = []
    for order in sorted({path.message for path in paths}):
        to_it = [path for path in paths if path.message == order]
        parts = []
        for path in to_it:
            part = torch.zeros(
                (lmax + 1) ** 2, 2 * order + 1, 2 * path.sender + 1, dtype=torch.float64
            )
            # (l_1, l_2, l_3) to (l_2, l_3, l_1).
            part[block(path.edge)] = o3.wigner_3j(*path, dtype=torch.float64).permute(1, 2, 0)
            parts.append(part * ((2 * order + 1) / len(to_it)) ** 0.5)
        found.append(torch.cat(parts, 2).flatten(1))
    return tuple(found)


def tensor_product(
    weight: Tensor, senders: Tensor, harmonics: Tensor, paths: tuple[Path, ...]
) -> Tensor:
    """Spherical tensors of senders times harmonics, each channel of each path by its weight.

    Args:
        weight: Shape (E, paths, U).
        senders: Shape (E, D_1, U), irreps order after order.
        harmonics: Shape (E, (lmax + 1)²).
        paths: As `natural_paths` makes them.

    Returns:
        Shape (E, D_3, U).
    """
    lmax = round(harmonics.shape[1] ** 0.5) - 1
    tables = _coefficients(paths, lmax, harmonics.dtype, harmonics.device)
    weights, irreps, parts = weight.split(1, 1), _by_order(senders), []
    for order, table in enumerate(tables):
        weighted = torch.cat(
            [
                w * irreps[path.sender]
                for w, path in zip(weights, paths, strict=True)
                if path.message == order
            ],
            1,
        )
        matrix = (harmonics @ table).unflatten(1, (2 * order + 1, weighted.shape[1]))
        parts.append(matrix @ weighted)
    return torch.cat(parts, 1)


class IrrepsConvolution(nn.Module):
    """One layer: messages, their sum, and a gated residual update.

    Args:
        width: Channels U of each irrep.
        scalars: Numbers K known of each edge, such as functions of its length.
        lmax: Highest order of the harmonics.
        inputs: Highest order of the irreps that come in.
        outputs: Highest order of those that come out.
    """

    def __init__(self, width: int, scalars: int, lmax: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.paths = natural_paths(inputs, lmax, outputs)
        # Here, so that no evaluation waits for e3nn to be imported.
        _steps(lmax, *EXACTLY)
        _coefficients(self.paths, lmax, *EXACTLY)

        # The weights of all paths, their first layer factored: W₁ h_i + b, W₂ h_j and W_a a.
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.scalars = nn.Linear(scalars, width, bias=False)
        self.path_weights = nn.Linear(width, len(self.paths) * width)

        self.before = _mixes(width, inputs)
        self.after = _mixes(width, outputs)
        self.update = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, (1 + outputs) * width)
        )

    def forward(
        self,
        h: Tensor,
        harmonics: Tensor,
        scalars: Tensor,
        edges: Edges,
        scale: Tensor,
        envelope: Tensor | None = None,
    ) -> Tensor:
        """Features afterwards.

        Args:
            h: Shape (N, (inputs + 1)², U).
            harmonics: `Y` of each edge, shape (E, (lmax + 1)²).
            scalars: Shape (E, K).
            edges: The graph.
            scale: What the sum of messages is multiplied by at each node, shape (N,).
            envelope: Weight of each edge's message, shape (E,), or None.

        Returns:
            Shape (N, (outputs + 1)², U).
        """
        message = self._sum_of_messages(h, harmonics, scalars, edges, envelope)
        message = _mixed(message * scale[:, None, None], self.after)
        own = h[:, 0]
        update = self.update(torch.cat([own, message[:, 0]], 1)).unflatten(
            1, (self.outputs + 1, -1)
        )
        parts = [(own + update[:, 0]).unsqueeze(1)]
        for order in range(1, self.outputs + 1):
            gated = update[:, [order]].sigmoid() * message[:, block(order)]
            parts.append(h[:, block(order)] + gated if order <= self.inputs else gated)
        return torch.cat(parts, 1)

    def _sum_of_messages(
        self,
        h: Tensor,
        harmonics: Tensor,
        scalars: Tensor,
        edges: Edges,
        envelope: Tensor | None,
    ) -> Tensor:
        own = h[:, 0]
        inner = edge_linear(
            self.receiver(own), self.sender(own), scalars, self.scalars.weight, edges
        )
        weight = self.path_weights(nn.functional.silu(inner)).unflatten(1, (len(self.paths), -1))
        if envelope is not None:
            weight = weight * envelope[:, None, None]
        senders = gather(_mixed(h, self.before), edges)
        return segment_sum(tensor_product(weight, senders, harmonics, self.paths), edges)


def _mixes(width: int, lmax: int) -> nn.ModuleList:
    """A mix of the channels of each irrep, which keeps the mean square of standard normal ones."""
    mixes = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(lmax + 1))
    for mix in mixes:
        nn.init.normal_(mix.weight, std=width**-0.5)
    return mixes


def _mixed(h: Tensor, mixes: Sequence[nn.Module]) -> Tensor:
    return torch.cat([mix(part) for mix, part in zip(mixes, _by_order(h), strict=True)], 1)
