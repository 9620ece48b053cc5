"""`eqflow score`: log-likelihood of structures under a trained run, with its terms and error.

Scored are batches, of few structures where each takes long, and what is scored is kept: killed or
stopped at any moment, the same command scores the rest, and ends with the rows and means it would
have ended with. Structures of a batch share the steps of an adaptive solver; which of them are
together is a function of model, structures and options, unless memory does not suffice for that.

A run that classifies nodes is scored by `eqflow.cli.score_nodes`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eqflow import storage
from eqflow.cli import score_nodes
from eqflow.cli.conditions import given_in
from eqflow.cli.journal import Journal, identity_of
from eqflow.cli.schemas import ScoreConfig
from eqflow.cli.score_table import OUT_OF_MEMORY, UNKNOWN_ELEMENT, Part, Table, Unscored
from eqflow.cli.signals import Received, Signals, typed_command
from eqflow.cli.terminal import Terminal
from eqflow.cli.traces import Plan, Traced
from eqflow.cli.trained import load_run, overridden, required_output, seed_of
from eqflow.data import has_known_elements, read_report, with_known_elements
from eqflow.data.files import READERS
from eqflow.data.records import ReadResult
from eqflow.data.units import unit_doubt
from eqflow.errors import DataError, ExitCode, MemoryExhausted, UsageError
from eqflow.evaluate import negative_log_likelihood
from eqflow.flows import BoundScores, Flow, MaskedMolecularFlow, MolecularFlow, Scores, Status
from eqflow.flows.convergence import CONVERGED, can_be_refined, unconverged, unresolved
from eqflow.flows.masked import NO_LIKELIHOOD
from eqflow.flows.molecular import DRAWS
from eqflow.geometry import Clouds
from eqflow.halving import by_halves
from eqflow.train.weights import classifies_nodes

BATCH = 256  # structures scored together, at most
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
    elements, charges = _atoms_of(flow)
    kept, unknown = with_known_elements(clouds, elements, config.data.on_problem, charges)
    places = has_known_elements(clouds, elements, charges).nonzero().squeeze(1).tolist()
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
    if doubt := unit_doubt(kept):
        terminal.line(f"notice: {doubt}")
    if clouds.numbers is not None and not flow.elements:
        terminal.line("the elements are ignored: this model knows none")
    if line := _of_charges(kept, flow):
        terminal.line(line)
    for line in given_in(kept, flow):
        terminal.line(line)
    dtype = next(flow.parameters()).dtype
    if config.convergence and not can_be_refined(solver, dtype):
        terminal.line(f"notice: {unresolved(solver, dtype)}")
    if cost := plan.cost(flow, kept.sizes, solver, options.get("draws", 1)):
        terminal.line(cost)
    draws = options.get("draws", 1)
    batches = list(plan.batches(flow, kept.sizes, solver, draws, max(1, BATCH // draws)))
    left_out = [
        Unscored.of(place, clouds[place], UNKNOWN_ELEMENT)
        for place in sorted(set(range(len(clouds))) - set(places))
    ]
    device = next(flow.parameters()).device
    identity = identity_of("score", config, device, {"data.path": config.data.path})
    with (
        Journal.opened(out, identity, terminal.line) as journal,
        Signals("this batch") as signals,
    ):
        table = Table(out, journal, left_out)
        if earlier := len(table):
            terminal.line(f"goes on after {earlier:,} structures")
        score = partial(
            flow.score,
            solver=solver,
            fallback=config.fallback,
            check_convergence=config.convergence,
            **options,
        )
        try:
            for batch in batches[table.batches :]:
                if signals.received():
                    break
                table.add(_scored(batch, kept, places, config.seed, score, terminal))
                terminal.counted(len(table), len(kept), "structures", earlier)
            if len(table):
                table.save()
        except Received:
            terminal.line(f"stopped at once; go on with: {typed_command()}")
            return signals.code()
        if table.batches < len(batches):
            terminal.line(
                f"stopped and saved after {len(table):,} of {len(kept):,} structures; go on with: "
                f"{typed_command()}"
            )
            return signals.code()
        journal.finish()
    return _told(table, out, len(kept), draws, bool(skipped), terminal)


def _scored(
    batch: Traced,
    clouds: Clouds,
    indices: Sequence[int],
    seed: int,
    score: Callable[..., Scores],
    terminal: Terminal,
) -> Part:
    """A batch of the clouds, or what of it fits into memory; `indices` are places in the file."""
    part = Part()

    def of(places: Sequence[int]) -> Scores:
        some = clouds[torch.tensor(places)]
        with warnings.catch_warnings():
            # Said of all structures, at the beginning or the end.
            warnings.filterwarnings("ignore", "score: (a|no) finer solver", RuntimeWarning)
            return score(some, divergence=batch.divergence, seed=seed_of(seed, places[0]))

    done, too_large = by_halves(batch.places, of)
    part.halved = int(len(done) + len(too_large) > 1)
    for place in too_large:
        lost = Unscored.of(indices[place], clouds[place], OUT_OF_MEMORY, batch.name)
        part.too_large.append(lost)
        terminal.line(
            f"left out: structure {lost.index} of {lost.points:,} points does not fit into memory "
            f"by the {batch.name} divergence"
        )
    for places, scores in done:
        where = [indices[place] for place in places]
        part.add(where, clouds[torch.tensor(places)], scores, batch.name)
        if isinstance(scores, BoundScores) and batch.divergence.is_exact:
            part.few += int((scores.effective_draws < FEW_DRAWS).sum())
    return part


def _told(
    table: Table, out: Path, count: int, draws: int, is_partial: bool, terminal: Terminal
) -> ExitCode:
    """Lines about what was scored; the exit code."""
    nll = negative_log_likelihood(table.log_prob)
    if nll.count:
        terminal.line(f"mean NLL {nll} nats over {nll.count:,} structures")
    if len(table.changes):
        terminal.line(_of_convergence(table.changes))
    if table.halved:
        terminal.line(
            f"did not fit into memory together, and were scored in parts: {table.halved:,} "
            f"batch{'es' if table.halved > 1 else ''}; with more memory, their scores differ by "
            "the error of the solver, and of estimated divergences"
        )
    if table.few and draws > 1:
        terminal.line(
            f"{table.few:,} bounds rest on fewer than {FEW_DRAWS} of their draws: they are loose "
            "and their errors too small; a larger draws= tightens them"
        )
    if alone := table.without_error:
        terminal.line(
            f"{alone:,} scores have no standard error (nan), which takes two or more draws= of a "
            "model of whole molecules, two or more divergence.probes= of one of positions"
        )
    for status, times in table.ended.items():
        what = "failed" if status.failed else "impossible"
        rows = f"; rows of {out} with status {status.name.lower()}"
        where = f"; {table.endings.where(status.name)}" if status.failed else rows
        terminal.line(f"{what}: {times:,} structures, {status.name.lower()}: {status.value}{where}")
    for line in table.endings.others():
        terminal.line(line)
    if large := table.too_large:
        least = min(each.points for each in large)
        terminal.line(
            f"left out: {len(large):,} structures of {least:,} points and more that do not fit "
            "into memory; divergence=hutchinson needs less of it"
        )
    if len(large) == count:
        raise MemoryExhausted(
            f"none of {count:,} structures fits into memory, see {out}. Say divergence=hutchinson, "
            "or free memory."
        )
    terminal.line(f"done: {out}")
    if not nll.count and table.ended[Status.IMPOSSIBLE_SIZE] < count:
        return ExitCode.NUMERICAL
    return ExitCode.PARTIAL if table.ended or large or is_partial else ExitCode.DONE


def _of_convergence(changes: torch.Tensor) -> str:
    """How far log-likelihoods are from those of the equation, by what a finer solver changes."""
    known = changes[changes.isfinite()]
    unknown = len(changes) - len(known)
    if not len(known):
        return f"convergence: unknown for all {unknown:,} structures"
    line = (
        f"convergence: a finer solver changes log-likelihoods by {float(known.mean()):+.2g} nats "
        f"in the mean over {len(known):,} structures, each by at most "
        f"{float(known.abs().max()):.2g}"
    )
    if unknown:
        line += f"; unknown for {unknown:,}"
    if count := int(unconverged(known).sum()):
        line += (
            f"; notice: {count:,} of {len(known):,} by more than {CONVERGED:g}. Try a smaller "
            "solver.rtol and solver.atol, or more solver.steps"
        )
    return line


def _atoms_of(flow: Flow | MolecularFlow) -> tuple[Sequence[int], Sequence[int] | None]:
    """Elements that a model knows and, where it tells them apart by it, the charge of each."""
    if isinstance(flow, MolecularFlow) and flow.types.charges is not None:
        return flow.types.numbers, flow.types.charges
    return flow.elements, None


def _of_charges(clouds: Clouds, flow: Flow | MolecularFlow) -> str:
    """What becomes of formal charges, where structures and model differ in knowing them."""
    modelled = isinstance(flow, MolecularFlow) and flow.models_charges
    if clouds.charges is not None and not modelled:
        charged = int((clouds.segments.sum(clouds.charges.abs()) > 0).sum())
        return f"the formal charges of {charged:,} structures are ignored: this model knows none"
    if clouds.charges is None and modelled:
        return "no formal charge other than 0 is stated: all atoms are taken for neutral"
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
