"""What a run counts, and what a step of it gives; all counters are saved and resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass
class Progress:
    """Counters of a run, all of them saved and resumed.

    Attributes:
        rollbacks: How often the run went back to a good checkpoint.
        saved_step: Step of the newest checkpoint that was due, 0 for the start.
        good_step: Step of the newest of these from which a finite step was made.
        left_out: Training data that do not fit into memory alone, by their places.
        not_validated: How many held-out data did not at the last validation.
    """

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    evaluations: float = 0.0
    rollbacks: int = 0
    saved_step: int = 0
    good_step: int = 0
    left_out: list[int] = field(default_factory=list)
    not_validated: int = 0


class Gradient(NamedTuple):
    """What a share of a step's data gives.

    Attributes:
        values: The gradient of each weight; None where the loss does not depend on it.
        terms: Scalars to log, the loss first.
        size: Of how many data it is; none where nothing of the share fits into memory.
    """

    values: Sequence[Tensor | None]
    terms: dict[str, float]
    size: int
