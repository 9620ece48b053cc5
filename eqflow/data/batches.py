"""Batches of structures of nearly one size, so that little of a padded batch is padding.

An epoch is shuffled, cut into windows of many batches, sorted by size within each window and cut
into batches, whose order is shuffled again. A batch is a pure function of the seed and the step, so
a run that resumes needs to know nothing but the number of its step.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import EmptyData, UsageError

WINDOW = 64  # Batches that are sorted together: more means less padding and less mixing.


class SizeBatches:
    """Batches of similar sizes; every index occurs exactly once an epoch.

    A complete graph on `n` points has `n (n − 1)` directed edges, so large structures come in
    smaller batches where `max_pairs` is set. The number of batches is the same in every epoch.

    Args:
        sizes: Points of each structure, shape (B,), int64.
        batch_size: Most structures of a batch.
        seed: Seed of all shuffles.
        max_pairs: Most directed edges of the complete graphs of a batch, padded to its largest
            structure. A structure that alone has more comes alone.

    Raises:
        EmptyData: If there is no structure.
        UsageError: If `batch_size` or `max_pairs` is below 1.

    >>> batches = SizeBatches(torch.tensor([3, 9, 3, 9]), batch_size=2, seed=0)
    >>> len(batches), sorted(sorted(batch.tolist()) for batch in batches.epoch(0))
    (2, [[0, 2], [1, 3]])
    """

    def __init__(
        self, sizes: Tensor, batch_size: int, seed: int, max_pairs: int | None = None
    ) -> None:
        if not sizes.numel():
            raise EmptyData("batches: found 0 structures, expected at least 1.")
        if batch_size < 1 or (max_pairs is not None and max_pairs < 1):
            raise UsageError(
                f"batches: found batch_size={batch_size}, max_pairs={max_pairs}, expected 1 or "
                "more."
            )
        self.sizes = sizes.detach().cpu()
        self.seed = seed
        fits = torch.full_like(self.sizes, batch_size)
        if max_pairs is not None:
            pairs = (self.sizes * (self.sizes - 1)).clamp(min=1)
            fits = torch.minimum(fits, max_pairs // pairs).clamp(min=1)
        # Structures of which the same number fit into a batch are batched among themselves.
        self._classes = [(int(c), torch.nonzero(fits == c).flatten()) for c in fits.unique()]
        self._length = sum(-(-len(members) // c) for c, members in self._classes)
        self._recent = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length

    def epoch(self, k: int) -> list[Tensor]:
        """The batches of epoch `k`, each a tensor of indices, int64."""
        return list(self._recent(k))

    def batch_at(self, step: int) -> Tensor:
        """The batch of a step counted from 0 over all epochs."""
        k, place = divmod(step, len(self))
        return self._recent(k)[place]

    def _epoch(self, k: int) -> tuple[Tensor, ...]:
        batches: list[Tensor] = []
        for capacity, members in self._classes:
            source = rng.generator(self.seed, "batches", "members", k, capacity)
            shuffled = members[rng.permutation(len(members), source)]
            count = -(-len(members) // capacity)
            # Even batches: none is a small rest.
            ends = torch.arange(count + 1) * len(members) // count
            for first in range(0, count, WINDOW):
                cuts = ends[first : first + WINDOW + 1]
                window = shuffled[cuts[0] : cuts[-1]]
                window = window[torch.argsort(self.sizes[window], stable=True)]
                batches.extend(torch.tensor_split(window, cuts[1:-1] - cuts[0]))
        order = rng.permutation(len(batches), rng.generator(self.seed, "batches", "order", k))
        return tuple(batches[i] for i in order.tolist())
