"""The rows that `eqflow score` writes, from where an earlier process of the same command left them.

Every batch of rows is an entry of the journal, with the exact log-likelihoods beside the rounded
ones, so that what is said of all of them does not depend on who scored which. The CSV file is made
of these entries alone: now and then, when the command is stopped, and at the end.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from eqflow import storage
from eqflow.cli.endings import Endings
from eqflow.cli.journal import Journal, Pace
from eqflow.flows import Scores, Status
from eqflow.geometry import Clouds

BEFORE_TERMS = ["index", "n", "log_prob", "log_prob_se", "nfe", "status", "divergence"]
AFTER_TERMS = ["time", "solver", "solver_error", "log_prob_change", "source"]
UNKNOWN_ELEMENT, OUT_OF_MEMORY = "unknown_element", "out_of_memory"


@dataclass(frozen=True)
class Unscored:
    """A structure that has a row but no score.

    Attributes:
        index: Its place in the file.
        points: How many it has.
        status: Why it has none.
        divergence: By which it was to be scored, or nothing.
        source: Where it is from.
    """

    index: int
    points: int
    status: str
    divergence: str
    source: str

    @classmethod
    def of(cls, index: int, cloud: Clouds, status: str, divergence: str = "") -> Unscored:
        """The one structure of `cloud`."""
        source = cloud.source[0] if cloud.source else ""
        return cls(index, int(cloud.sizes), status, divergence, source)

    def row(self, terms: int) -> list[str]:
        """As it is written, with NaN for what is not known."""
        nan = _number(math.nan)
        start = [str(self.index), str(self.points), nan, nan, "0", self.status, self.divergence]
        return [*start, *([nan] * terms), "", "", "", "", self.source]


@dataclass
class Part:
    """What came of a batch; an entry of the journal.

    Attributes:
        terms: Names of the parts that a log-likelihood is made of; none where none was computed.
        rows: As they are written, of structures with a score.
        log_prob: Their log-likelihoods in nats.
        ended: How often an integration ended otherwise than well, by the name of the status.
        few: How many bounds rest on few of their draws.
        too_large: Structures that do not fit into memory.
        halved: Whether the batch did not fit into memory together, as 0 or 1.
        endings: How integrations ended that did not end as asked.
        changes: What a finer solver changes of each log-likelihood, where that was asked for; None
            where it is not known.
    """

    terms: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    log_prob: list[float] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    few: int = 0
    too_large: list[Unscored] = field(default_factory=list)
    halved: int = 0
    endings: Endings = field(default_factory=Endings)
    changes: list[float | None] = field(default_factory=list)

    def add(self, indices: Sequence[int], clouds: Clouds, scores: Scores, divergence: str) -> None:
        """Rows of structures that were scored together, at their places in the file."""
        self.terms = list(scores.terms)
        self.rows += _rows(indices, clouds, scores, divergence)
        self.log_prob += scores.log_prob.double().tolist()
        self.endings.take(indices, scores)
        if scores.log_prob_change is not None:
            changes = scores.log_prob_change.double().tolist()
            self.changes += [None if math.isnan(change) else change for change in changes]
        for status in scores.status:
            if status is not Status.SUCCESS:
                self.ended[status.name] = self.ended.get(status.name, 0) + 1


class Table:
    """All rows so far.

    Args:
        out: CSV file to write.
        journal: Of this file.
        left_out: Structures of the file that are not to be scored, but have a row.

    Attributes:
        few: How many bounds rest on few of their draws.
        ended: How often an integration ended otherwise than well.
        too_large: Structures that do not fit into memory.
        halved: Batches that did not fit into memory together.
        endings: How integrations ended that did not end as asked.
    """

    def __init__(self, out: Path, journal: Journal, left_out: Sequence[Unscored]) -> None:
        self.few = 0
        self.ended: Counter[Status] = Counter()
        self.too_large: list[Unscored] = []
        self.halved = 0
        self.endings = Endings()
        self._out = out
        self._journal = journal
        self._left_out = left_out
        self._terms: list[str] = []
        self._rows: dict[int, list[str]] = {}
        self._log_prob: list[float] = []
        self._changes: list[float | None] = []
        self._pace = Pace()
        for entry in journal.entries:
            large = [Unscored(**each) for each in entry["too_large"]]
            endings = Endings(**entry["endings"])
            self._take(Part(**{**entry, "too_large": large, "endings": endings}))

    def __len__(self) -> int:
        """How many structures are done, with a score or without."""
        return len(self._rows) + len(self.too_large)

    @property
    def batches(self) -> int:
        """How many batches are done."""
        return len(self._journal.entries)

    @property
    def log_prob(self) -> Tensor:
        """Log-likelihoods in nats, in the order in which they were computed, float64."""
        return torch.tensor(self._log_prob, dtype=torch.float64)

    @property
    def changes(self) -> Tensor:
        """What a finer solver changes of log-likelihoods, NaN where it is not known, float64."""
        changes = [math.nan if change is None else change for change in self._changes]
        return torch.tensor(changes, dtype=torch.float64)

    @property
    def without_error(self) -> int:
        """How many scores have no standard error, for want of a second draw or probe."""
        place = BEFORE_TERMS.index
        return sum(
            row[place("status")] == Status.SUCCESS.name.lower()
            and row[place("log_prob_se")] == _number(math.nan)
            for row in self._rows.values()
        )

    def add(self, part: Part) -> None:
        """Keep a batch; the file is written now and then."""
        self._journal.add(asdict(part))
        self._take(part)
        if self._pace.is_due() and self._terms:
            self.save()

    def save(self) -> None:
        """Write the file with all rows so far."""
        unscored = [*self._left_out, *self.too_large]
        rows = self._rows | {each.index: each.row(len(self._terms)) for each in unscored}
        header = [*BEFORE_TERMS, *self._terms, *AFTER_TERMS]
        with self._pace.writing():
            storage.write_text(self._out, _csv([header, *(rows[place] for place in sorted(rows))]))

    def _take(self, part: Part) -> None:
        self._terms = part.terms or self._terms
        self._rows |= {int(row[0]): row for row in part.rows}
        self._log_prob += part.log_prob
        self.ended.update({Status[name]: count for name, count in part.ended.items()})
        self.few += part.few
        self.too_large += part.too_large
        self.halved += part.halved
        self.endings.add(part.endings)
        self._changes += part.changes


def _rows(
    indices: Sequence[int], clouds: Clouds, scores: Scores, divergence: str
) -> list[list[str]]:
    sources = clouds.source or ("",) * len(clouds)
    changes = scores.log_prob_change
    return [
        [
            str(indices[i]),
            str(size),
            _number(float(scores.log_prob[i])),
            _number(float(scores.log_prob_se[i])),
            str(int(scores.evaluations[i])),
            scores.status[i].name.lower(),
            "" if scores.status[i] is Status.IMPOSSIBLE_SIZE else divergence,
            *(_number(float(term[i])) for term in scores.terms.values()),
            _number(float(scores.time[i])),
            scores.solver[i],
            _number(float(scores.solver_error[i])) if scores.solver[i] else "",
            "" if changes is None else _number(float(changes[i])),
            sources[i],
        ]
        for i, size in enumerate(clouds.sizes.tolist())
    ]


def _number(value: float) -> str:
    return f"{value + 0.0:.8g}"  # of −0 it makes 0


def _csv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    # Bytes of a path that are no UTF-8 are spelled out, as in what is printed.
    return buffer.getvalue().encode("utf-8", "backslashreplace").decode()
