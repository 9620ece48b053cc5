"""One peer against eqflow: equal results first, then time in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from harness import race
from torch import Tensor

# Of float32 results, relative to the largest entry.
TOLERANCE = 1e-4
# CPU seconds that one contest may take for the sake of a steadier median, and its rounds at most.
BUDGET = 2.0
MOST_ROUNDS = 41


@contextmanager
def settled() -> Iterator[None]:
    """Bring the process to the state that a long run is in, so that no contest favours its place.

    glibc hands out blocks of up to 32 MiB as fresh pages, which cost as much as small operations,
    until it has seen one freed: whoever ran first would be slower. What was imported need not be
    searched for garbage before each round.
    """
    torch.empty(2**23 - 2**14)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def contest(
    case: str,
    work: str,
    peer: str,
    mine: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    difference: float | None,
    *,
    same_function: bool = True,
) -> dict[str, Any]:
    """Median CPU seconds of both and their ratio, above 1 where eqflow is faster.

    Args:
        case: What it runs on.
        work: What is done with it.
        peer: The other's name.
        mine, theirs: The work, by eqflow and by the peer.
        rounds: Repeats of each at least; short work is repeated more.
        difference: Of the results at equal weights, or None where they cannot be compared.
        same_function: Whether both compute the same, by design.
    """
    cases = {"eqflow": mine, "peer": theirs}
    once = sum(race(cases, 1).values())
    seconds = race(cases, max(rounds, min(MOST_ROUNDS, int(BUDGET / once))))
    ratio = seconds["peer"] / seconds["eqflow"]
    equal = "" if difference is None else f"equal to {difference:.0e}"
    print(f"{case:<36}{work:<20}{peer:<32}{ratio:6.2f}×   {equal}", flush=True)
    return {
        "case": case,
        "work": work,
        "peer": peer,
        "eqflow_seconds": seconds["eqflow"],
        "peer_seconds": seconds["peer"],
        "ratio": ratio,
        "same_function": same_function,
        "difference": difference,
    }


def agreement(what: str, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of corresponding tensors, each relative to its largest entry."""
    worst = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(mine, theirs, strict=True)
    )
    if not worst < TOLERANCE:
        raise SystemExit(f"{what}: results differ by {worst:.1e}, expected below {TOLERANCE:.0e}.")
    return worst
