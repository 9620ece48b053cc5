"""Couplings: which noise each structure is paired with when a flow is trained by matching.

A coupling only permutes, rotates or reassigns independent noise. The base density is invariant
under all of these, so its marginal is unchanged, while the paths to be learned become shorter and
straighter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eqflow.flows.base import CenteredNormal
from eqflow.geometry import Segments, align


class AbstractCoupling(ABC):
    """Draws the noise for a batch of structures."""

    @abstractmethod
    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None, source: torch.Generator
    ) -> Tensor:
        """Noise for each cloud, centred, shape (N, d).

        Args:
            x: Centred structures, shape (N, d).
            clouds: Which points belong to which structure.
            types: Points of one type are alike, shape (N,); all are alike where None.
            source: Where the noise comes from.
        """


class Independent(AbstractCoupling):
    """Noise that knows nothing of the structure.

    Reference: Flow Matching for Generative Modeling (Lipman et al., 2023), arXiv:2210.02747.
    """

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None, source: torch.Generator
    ) -> Tensor:
        """Independent noise."""
        return CenteredNormal().sample(clouds, x.shape[1], x, source)


class MinibatchOT(AbstractCoupling):
    """Noise clouds reassigned among structures of one size at the least total squared distance.

    Reference: Improving and generalizing flow-based generative models with minibatch optimal
    transport (Tong et al., 2024), arXiv:2302.00482.
    """

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None, source: torch.Generator
    ) -> Tensor:
        """Reassigned noise."""
        z = CenteredNormal().sample(clouds, x.shape[1], x, source)
        return reassigned(x, z, clouds)


class EquivariantOT(AbstractCoupling):
    """Noise aligned to its structure, by permutations of like points and by rotations.

    Alternates assignment and Kabsch within each pair.

    Args:
        iterations: Rounds of permutation and rotation.

    Reference: Equivariant flow matching (Klein, Krämer, Noé, 2023), arXiv:2306.15030, who align all
    pairs of a batch and exchange noise between structures as well; here only the pairs themselves.
    """

    def __init__(self, iterations: int = 2) -> None:
        self.iterations = iterations

    def __call__(
        self, x: Tensor, clouds: Segments, types: Tensor | None, source: torch.Generator
    ) -> Tensor:
        """Reassigned and aligned noise."""
        z = CenteredNormal().sample(clouds, x.shape[1], x, source)
        return align(x, z, clouds, types, self.iterations)


def reassigned(x: Tensor, z: Tensor, clouds: Segments) -> Tensor:
    """The clouds of `z` exchanged among those of one size, closest to `x` in total, (N, d)."""
    result = z.clone()
    for size in clouds.lengths.unique().tolist():
        members = (clouds.lengths == size).nonzero().squeeze(1)
        _, rows = clouds.select(members)
        left = x[rows].reshape(len(members), -1)
        right = z[rows].reshape(len(members), -1)
        _, matched = linear_sum_assignment((left @ right.T).cpu().numpy(), maximize=True)
        chosen = right[torch.from_numpy(matched).to(z.device)]
        result = result.index_put((rows,), chosen.reshape(len(rows), -1))
    return result
