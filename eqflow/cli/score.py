"""`eqflow score`: log-likelihood of structures under a trained run, with its terms and error."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from eqflow import rng, storage
from eqflow.cli.schemas import ScoreConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_run, overridden, required_output
from eqflow.data import read_report, with_known_elements
from eqflow.data.files import READERS
from eqflow.data.records import ReadResult
from eqflow.errors import DataError, ExitCode, UsageError
from eqflow.evaluate import negative_log_likelihood
from eqflow.flows import Scores, Status
from eqflow.geometry import Clouds
from eqflow.train.build import build_divergence
from eqflow.train.weights import divergence_of_run

BATCH = 256  # structures between two lines of progress


def run(config: ScoreConfig) -> ExitCode:
    """Score, write a row a structure, and say the mean."""
    out = required_output(config.out, [".csv"], "scores.csv")
    if config.data.path is None:
        raise UsageError("data.path: needed; give a file of structures.")
    if config.data.on_problem not in ("stop", "skip"):
        raise UsageError(
            f"data.on_problem: found {config.data.on_problem!r}, expected stop or skip."
        )
    if config.data.structures is not None and config.data.structures < 1:
        raise UsageError(f"data.structures: found {config.data.structures}, expected at least 1.")
    flow = load_run(config.run, config.device, config.threads)
    chosen = config.divergence or divergence_of_run(str(config.run))
    divergence = build_divergence(chosen)
    solver = overridden(flow.solver, config.solver)
    result = _structures(config.data.path, flow.dimension, config.data.on_problem)
    clouds, unknown = with_known_elements(
        result.clouds[: config.data.structures],
        flow.compositions.elements,
        config.data.on_problem,
    )
    skipped = [*result.skipped, *unknown]
    storage.require_writable(out.parent)

    how = f"at {solver.rtol:g}" if solver.is_adaptive else f"in {solver.steps} steps"
    terminal = Terminal()
    terminal.line(
        f"score {len(clouds):,} structures of {config.data.path} under {config.run}: "
        f"{chosen.name} divergence, {solver.method} {how}, to {out}"
    )
    for line in skipped:
        terminal.line(f"skipped: {line}")
    if clouds.numbers is not None and not flow.compositions.elements:
        terminal.line("the elements are ignored: this model knows none")
    rows: list[list[str]] = []
    parts: list[Scores] = []
    for first in range(0, len(clouds), BATCH):
        scores = flow.score(
            clouds[first : first + BATCH],
            divergence=divergence,
            seed=config.seed if first == 0 else rng.derived_seed(config.seed, "batch", first),
            solver=solver,
        )
        parts.append(scores)
        rows += _rows(scores, first, clouds[first : first + BATCH])
        terminal.counted(len(rows), len(clouds), "structures")
    terms = list(parts[0].terms)
    header = ["index", "n", "log_prob", "log_prob_se", "nfe", "status", *terms, "source"]
    storage.write_text(out, _csv([header, *rows]))

    failed = sum(status is not Status.SUCCESS for part in parts for status in part.status)
    finite = [part.log_prob for part in parts]
    nll = negative_log_likelihood(
        finite[0].new_tensor([v for part in finite for v in part.tolist()])
    )
    if nll.count:
        terminal.line(f"mean NLL {nll} nats over {nll.count:,} structures")
    for status in Status:
        lost = sum(part.status.count(status) for part in parts)
        if lost and status is not Status.SUCCESS:
            terminal.line(f"failed: {lost:,} structures, {status.name.lower()}: {status.value}")
    terminal.line(f"done: {out}")
    if not nll.count:
        return ExitCode.NUMERICAL
    return ExitCode.PARTIAL if failed or skipped else ExitCode.DONE


def _structures(path: str, dimension: int, on_problem: str) -> ReadResult:
    """The structures of a file, in the dimension of the model."""
    if Path(path).suffix.lower() not in READERS:
        raise UsageError(f"data.path: found {path}, expected a file in {' '.join(READERS)}.")
    try:
        return read_report(path, dimension, on_problem)
    except UsageError as error:
        raise DataError(f"the model has dimension {dimension}, but {error}") from error


def _rows(scores: Scores, first: int, clouds: Clouds) -> list[list[str]]:
    sources = clouds.source or ("",) * len(clouds)
    return [
        [
            str(first + i),
            str(size),
            _number(float(scores.log_prob[i])),
            _number(float(scores.log_prob_se[i])),
            str(int(scores.evaluations[i])),
            scores.status[i].name.lower(),
            *(_number(float(term[i])) for term in scores.terms.values()),
            sources[i],
        ]
        for i, size in enumerate(clouds.sizes.tolist())
    ]


def _number(value: float) -> str:
    return f"{value:.8g}"


def _csv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
