"""`eqflow score`: log-likelihood of structures under a trained run, with its terms and error.

A run that classifies nodes is scored by `eqflow.cli.score_nodes`.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from eqflow import rng, storage
from eqflow.cli import score_nodes
from eqflow.cli.conditions import given_in
from eqflow.cli.schemas import ScoreConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.traces import Plan
from eqflow.cli.trained import load_run, overridden, required_output
from eqflow.data import has_known_elements, read_report, with_known_elements
from eqflow.data.files import READERS
from eqflow.data.records import ReadResult
from eqflow.errors import DataError, ExitCode, UsageError
from eqflow.evaluate import negative_log_likelihood
from eqflow.flows import BoundScores, Flow, MaskedMolecularFlow, MolecularFlow, Scores, Status
from eqflow.flows.masked import NO_LIKELIHOOD
from eqflow.flows.molecular import DRAWS
from eqflow.geometry import Clouds
from eqflow.train.weights import classifies_nodes

BATCH = 256  # structures between two lines of progress
FEW_DRAWS = 3


def run(config: ScoreConfig) -> ExitCode:
    """Score, write a row a structure, and say the mean."""
    out = required_output(config.out, [".csv"], "scores.csv")
    if config.run is not None and classifies_nodes(config.run):
        return score_nodes.run(config, out)
    if config.data.source is not None:
        raise UsageError("data.source: only for a run that classifies nodes. Leave it out.")
    if config.data.path is None:
        raise UsageError("data.path: needed; give a file of structures.")
    if config.data.on_problem not in ("stop", "skip"):
        raise UsageError(
            f"data.on_problem: found {config.data.on_problem!r}, expected stop or skip."
        )
    if config.data.structures is not None and config.data.structures < 1:
        raise UsageError(f"data.structures: found {config.data.structures}, expected at least 1.")
    flow = load_run(config.run, config.device, config.threads)
    if isinstance(flow, MaskedMolecularFlow):
        raise UsageError(NO_LIKELIHOOD)
    options = _of_joint_models(config, flow)
    solver = overridden(flow.solver, config.solver)
    result = _structures(config.data.path, flow.dimension, config.data.on_problem)
    clouds = result.clouds[: config.data.structures]
    kept, unknown = with_known_elements(clouds, flow.elements, config.data.on_problem)
    places = has_known_elements(clouds, flow.elements).nonzero().squeeze(1).tolist()
    skipped = [*result.skipped, *unknown]
    plan = Plan.of(config, flow, kept.sizes)
    storage.require_writable(out.parent)

    how = f"at {solver.rtol:g}" if solver.is_adaptive else f"in {solver.steps} steps"
    times = f"{options['draws']} draws of features each, " if "draws" in options else ""
    terminal = Terminal()
    terminal.line(
        f"score {len(kept):,} structures of {config.data.path} under {config.run}: {times}"
        f"{plan.words}, {solver.method} {how}, to {out}"
    )
    for line in skipped:
        terminal.line(f"skipped: {line}")
    if clouds.numbers is not None and not flow.elements:
        terminal.line("the elements are ignored: this model knows none")
    if line := _of_charges(kept, flow):
        terminal.line(line)
    for line in given_in(kept, flow):
        terminal.line(line)
    if cost := plan.cost(flow, kept.sizes, solver, options.get("draws", 1)):
        terminal.line(cost)
    rows: dict[int, list[str]] = {}
    parts: list[Scores] = []
    few = 0  # bounds that a draw or two decide
    together = max(1, BATCH // options.get("draws", 1))
    for part in plan.parts:
        for first in range(0, len(part.places), together):
            chosen = part.places[first : first + together]
            batch = kept[torch.tensor(chosen)]
            scores = flow.score(
                batch,
                divergence=part.divergence,
                seed=_seed_of(config.seed, chosen[0]),
                solver=solver,
                **options,
            )
            parts.append(scores)
            if isinstance(scores, BoundScores) and part.divergence.is_exact:
                few += int((scores.effective_draws < FEW_DRAWS).sum())
            for place, row in zip(chosen, _rows(scores, batch, part.name), strict=True):
                rows[places[place]] = [str(places[place]), *row]
            terminal.counted(len(rows), len(kept), "structures")
    terms = list(parts[0].terms)
    for place in sorted(set(range(len(clouds))) - set(places)):
        rows[place] = [str(place), *_unknown(clouds[place], len(terms))]
    header = ["index", "n", "log_prob", "log_prob_se", "nfe", "status", "divergence"]
    header += [*terms, "source"]
    storage.write_text(out, _csv([header, *(rows[place] for place in sorted(rows))]))

    nll = negative_log_likelihood(torch.cat([part.log_prob for part in parts]))
    if nll.count:
        terminal.line(f"mean NLL {nll} nats over {nll.count:,} structures")
    if few and options["draws"] > 1:
        terminal.line(
            f"{few:,} bounds rest on fewer than {FEW_DRAWS} of their draws: they are loose and "
            "their errors too small; a larger draws= tightens them"
        )
    ended = Counter(status for part in parts for status in part.status)
    del ended[Status.SUCCESS]
    for status, count in ended.items():
        what = "failed" if status.failed else "impossible"
        terminal.line(f"{what}: {count:,} structures, {status.name.lower()}: {status.value}")
    terminal.line(f"done: {out}")
    if not nll.count and ended[Status.IMPOSSIBLE_SIZE] < len(kept):
        return ExitCode.NUMERICAL
    return ExitCode.PARTIAL if ended or skipped else ExitCode.DONE


def _of_charges(clouds: Clouds, flow: Flow | MolecularFlow) -> str:
    """What becomes of formal charges, where structures and model differ in knowing them."""
    modelled = isinstance(flow, MolecularFlow) and flow.models_charges
    if clouds.charges is not None and not modelled:
        charged = int((clouds.segments.sum(clouds.charges.abs()) > 0).sum())
        return f"the formal charges of {charged:,} structures are ignored: this model knows none"
    if clouds.charges is None and modelled:
        return "no formal charge is stated: all atoms are taken for neutral"
    return ""


def _of_joint_models(config: ScoreConfig, flow: Flow | MolecularFlow) -> dict[str, Any]:
    """Options of `MolecularFlow.score` that others do not have."""
    given = {
        key: value
        for key, value in (
            ("draws", config.draws),
            ("published_actnorm", config.published_actnorm),
        )
        if value is not None
    }
    if isinstance(flow, MolecularFlow):
        if given.get("draws", DRAWS) < 1:
            raise UsageError(f"draws: found {config.draws}, expected at least 1.")
        return {"draws": DRAWS} | given
    if given:
        raise UsageError(
            f"{' and '.join(given)}: only for a joint model; this one takes the elements as given "
            "and draws no features. Leave it out."
        )
    return {}


def _structures(path: str, dimension: int, on_problem: str) -> ReadResult:
    """The structures of a file or folder, in the dimension of the model."""
    if Path(path).suffix.lower() not in READERS and not Path(path).is_dir():
        raise UsageError(
            f"data.path: found {path}, expected a file in {' '.join(READERS)}, or a folder of them."
        )
    try:
        return read_report(path, dimension, on_problem)
    except UsageError as error:
        raise DataError(f"the model has dimension {dimension}, but {error}") from error


def _seed_of(seed: int, place: int) -> int:
    """The seed of the batch whose first structure is at a place of the file."""
    return seed if place == 0 else rng.derived_seed(seed, "batch", place)


def _rows(scores: Scores, clouds: Clouds, divergence: str) -> list[list[str]]:
    """What follows the index, for each structure."""
    sources = clouds.source or ("",) * len(clouds)
    return [
        [
            str(size),
            _number(float(scores.log_prob[i])),
            _number(float(scores.log_prob_se[i])),
            str(int(scores.evaluations[i])),
            scores.status[i].name.lower(),
            "" if scores.status[i] is Status.IMPOSSIBLE_SIZE else divergence,
            *(_number(float(term[i])) for term in scores.terms.values()),
            sources[i],
        ]
        for i, size in enumerate(clouds.sizes.tolist())
    ]


def _unknown(cloud: Clouds, terms: int) -> list[str]:
    """The row of a structure that was left out because of an element."""
    nan = _number(math.nan)
    return [
        str(int(cloud.sizes)),
        *(nan, nan, "0", "unknown_element", "", *([nan] * terms)),
        cloud.source[0] if cloud.source else "",
    ]


def _number(value: float) -> str:
    return f"{value:.8g}"


def _csv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
