"""The `.smi` format: a SMILES a line, and a name if any, embedded in 3-D by RDKit.

A SMILES has no positions. Those made up for it (`eqflow.chem.embedding`) are one conformer, the
same for the same text. Making it takes hundredths of a second for ten heavy atoms and tenths for
thirty, so write them down once: `eqflow.read("a.smi").write("a.extxyz")`. Blank lines, lines that
start with `#`, and a first line that starts with the word `smiles` are left out.
"""

from __future__ import annotations

from pathlib import Path

from eqflow.chem.embedding import embedded
from eqflow.chem.workers import Worker
from eqflow.data.records import ADVICE, Collector, ReadResult, accept, require_choice
from eqflow.data.text import open_lines, shown
from eqflow.errors import DataError, MalformedRecord

# How long one molecule may take.
SECONDS = 60.0


def read_smi(path: Path, dimension: int | None = None, on_problem: str = "stop") -> ReadResult:
    """One structure a line of a `.smi` file, positions in float64.

    Raises:
        MalformedRecord: If RDKit cannot read a line or embed its molecule.
        EmptyData: If no structure is left.
        EqflowError: If the worker process cannot be started.
    """
    require_choice(on_problem)
    collector = Collector(str(path), "{}: atom {}".format)
    with open_lines(path) as lines, Worker(embedded, SECONDS) as worker:
        while taken := lines.take(1):
            where = f"{path}:{lines.number - 1}"
            words = taken[0].split()
            if not words or words[0].startswith("#"):
                continue
            if lines.number == 2 and words[0].lower() == "smiles":
                continue
            outcome = worker(words[0])
            if outcome.value is None:
                collector.refuse(_refusal(where, words[0], outcome.problem))
                if on_problem == "stop":
                    break
                continue
            found = outcome.value
            collector.add(found["numbers"], found["positions"], found["charges"], where)
    return accept(collector.records(), on_problem, dimension)


def _refusal(where: str, smiles: str, problem: str) -> DataError:
    reason = problem.removeprefix("ValueError: ")
    if not reason.startswith("expected"):
        reason = f"expected a molecule that RDKit can embed in 3-D; it {problem}"
    return MalformedRecord(f"{where}: found {shown(smiles)}, {reason}. {ADVICE}")
