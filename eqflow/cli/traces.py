"""Which structures `eqflow score` scores by the exact trace and which by probes, and at what cost.

The exact trace grows as the third power of the number of points. Beyond a number of points that
depends on the model alone the trace is estimated, and the row says so, with a standard error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from eqflow.cli.schemas import ScoreConfig
from eqflow.cli.terminal import duration
from eqflow.errors import UsageError
from eqflow.flows import Flow, Hutchinson, MolecularFlow, Solver
from eqflow.flows.exact_cost import affordable_points, multiplications, seconds_of_trace
from eqflow.flows.steppers import TABLEAUS
from eqflow.flows.trace import AbstractDivergence
from eqflow.train.build import build_divergence
from eqflow.train.config import ExactConfig
from eqflow.train.weights import DivergenceConfig, divergence_of_run

PROBES = 4  # as of `divergence=hutchinson`
# dopri5 at 1e-5 took 56 to 164 on molecules of 5 to 29 atoms (`benchmarks/results`).
TYPICAL_EVALUATIONS = 150
NOTICEABLE = 5  # seconds
# Multiplications between two saves: a minute of one thread of a CPU, see `eqflow.flows.exact_cost`,
# or about as long of a GPU, which needs more structures at a time to be busy.
BETWEEN_SAVES = {"cpu": 24 * 10**11}
BETWEEN_SAVES_ELSEWHERE = 10**14


@dataclass(frozen=True)
class Traced:
    """Structures whose trace is computed alike.

    Attributes:
        name: Of the divergence, as rows and lines have it.
        divergence: How the trace is computed.
        places: Which structures, in their order.
    """

    name: str
    divergence: AbstractDivergence
    places: list[int]


@dataclass(frozen=True)
class Plan:
    """How the trace of each structure is computed.

    Attributes:
        parts: At most two: what was chosen, and probes for those too large for it.
        words: What people are told.
    """

    parts: list[Traced]
    words: str

    @classmethod
    def of(cls, config: ScoreConfig, flow: Flow | MolecularFlow, sizes: Tensor) -> Plan:
        """For structures of given sizes (B,), by the words of the command or else by the run.

        Whole molecules are scored exactly unless told otherwise: draws of features can only be
        weighted by bounds that are not estimates.

        An exact trace that was asked for in so many words has no limit but one given as well.

        Raises:
            UsageError: If `exact_atoms` is out of range, or the divergence is not exact.
        """
        chosen: DivergenceConfig = config.divergence or _default(config, flow)
        divergence, limit = build_divergence(chosen), config.exact_atoms
        if limit is not None and limit < 1:
            raise UsageError(f"exact_atoms: found {limit}, expected at least 1.")
        if limit is not None and not divergence.is_exact:
            raise UsageError(
                f"exact_atoms: only with the exact trace, found {chosen.name}. Leave it out, or "
                "say divergence=exact."
            )
        if limit is None and divergence.is_exact and config.divergence is None:
            limit = affordable_points(flow.continuous.field, flow.dimension)
        is_larger = sizes > (sizes.max() if limit is None else limit)
        places = [mask.nonzero().squeeze(1).tolist() for mask in (~is_larger, is_larger)]
        parts = [
            Traced(chosen.name, divergence, places[0]),
            Traced("hutchinson", Hutchinson(PROBES), places[1]),
        ]
        words = f"{chosen.name} divergence"
        if places[1]:
            words += f" up to {limit} points, hutchinson for {len(places[1]):,} larger"
        return cls([part for part in parts if part.places], words)

    def batches(
        self, flow: Flow | MolecularFlow, sizes: Tensor, solver: Solver, draws: int, most: int
    ) -> Iterator[Traced]:
        """Structures that are scored together: at most `most`, fewer where each takes long.

        How many is a function of model, structures and kind of device, so that the same command
        has the same batches.
        """
        times = draws * _evaluations(solver)
        device = next(flow.parameters()).device.type
        budget = BETWEEN_SAVES.get(device, BETWEEN_SAVES_ELSEWHERE)
        for part in self.parts:
            together: list[int] = []
            spent = 0
            for place in part.places:
                points = int(sizes[place])
                work = times * multiplications(flow.continuous.field, points, flow.dimension)
                if not part.divergence.is_exact:  # some directions, and not all
                    work //= max(points, 1)
                if together and (len(together) == most or spent + work > budget):
                    yield replace(part, places=together)
                    together, spent = [], 0
                together.append(place)
                spent += work
            yield replace(part, places=together)

    def cost(
        self, flow: Flow | MolecularFlow, sizes: Tensor, solver: Solver, draws: int
    ) -> str | None:
        """What an exact score of the largest structure takes, where people would notice."""
        exact = [sizes[part.places] for part in self.parts if part.divergence.is_exact]
        if isinstance(flow, MolecularFlow):  # nothing is integrated where the size is impossible
            exact = [some[flow.sizes.log_prob(some).isfinite()] for some in exact]
        points = max((int(some.max()) for some in exact if len(some)), default=0)
        if not points:
            return None
        seconds = (
            draws * _evaluations(solver) * seconds_of_trace(flow.continuous, points, flow.dimension)
        )
        if seconds < NOTICEABLE:
            return None
        return (
            f"exact trace: about {duration(seconds)} for a structure of {points} points; "
            "exact_atoms= leaves those of more points to probes, with a standard error"
        )


def _evaluations(solver: Solver) -> int:
    if solver.is_adaptive:
        return TYPICAL_EVALUATIONS
    return solver.steps * len(TABLEAUS[solver.method].weights)


def _default(config: ScoreConfig, flow: Flow | MolecularFlow) -> DivergenceConfig:
    if isinstance(flow, MolecularFlow):
        return ExactConfig()
    return divergence_of_run(str(config.run))
