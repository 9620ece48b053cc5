"""`eqflow sample`: draw structures from a trained run."""

from __future__ import annotations

from typing import Any

from eqflow import rng, storage
from eqflow.chem.elements import symbol
from eqflow.chem.formula import numbers_of_formula
from eqflow.cli.schemas import SampleConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_run, overridden, required_output
from eqflow.data import read, with_known_elements, writable_ending, write
from eqflow.data.files import WRITERS
from eqflow.errors import ExitCode, SolverFailed, UnknownElement, UsageError
from eqflow.flows import Flow, MolecularFlow, Status
from eqflow.geometry import Clouds


def run(config: SampleConfig) -> ExitCode:
    """Draw, write, and say how many integrations failed."""
    if config.n < 1 or config.batch < 1:
        raise UsageError(
            f"n, batch: found {config.n} and {config.batch}, expected at least 1 each."
        )
    given = [name for name in ("sizes", "formula", "like") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other; give one of them.")
    out = required_output(config.out, list(WRITERS), "samples.extxyz")
    flow = load_run(config.run, config.device, config.threads)
    makeup = _makeup(config, flow)
    writable_ending(out, dimension=flow.dimension, one_size=_one_size(makeup, flow))
    solver = overridden(flow.solver, config.solver)
    storage.require_writable(out.parent)

    terminal = Terminal()
    terminal.line(f"sample {config.n:,} structures from {config.run} by {solver.method}, to {out}")
    parts: list[Clouds] = []
    evaluations = failed = 0
    for first in range(0, config.n, config.batch):
        drawn = flow.draw(
            min(config.batch, config.n - first),
            seed=config.seed if first == 0 else rng.derived_seed(config.seed, "batch", first),
            solver=solver,
            **{key: each[first : first + config.batch] for key, each in makeup.items()},
        )
        arrived = [i for i, status in enumerate(drawn.status) if status is Status.SUCCESS]
        failed += len(drawn.status) - len(arrived)
        evaluations = max(evaluations, int(drawn.evaluations.max()))
        if arrived:
            parts.append(drawn.clouds[arrived])
        terminal.counted(first + len(drawn.status), config.n, "structures")
    if not parts:
        raise SolverFailed(
            f"none of {config.n:,} integrations arrived; nothing was written. Try "
            "solver.method=rk4 or a larger solver.step_limit."
        )
    samples = Clouds.join(parts)
    write(samples, out)
    terminal.line(f"at most {evaluations} evaluations of the field a structure")
    if failed:
        terminal.line(f"left out: {failed} structures whose integration failed")
    terminal.line(f"done: {len(samples):,} structures in {out}")
    return ExitCode.PARTIAL if failed else ExitCode.DONE


def _makeup(config: SampleConfig, flow: Flow | MolecularFlow) -> dict[str, list[Any]]:
    """What fixes the make-up of each structure, as `sizes` or `numbers` of `draw`."""
    if isinstance(flow, MolecularFlow):
        return _sizes(config, flow)
    if config.sizes is not None:
        flow.compositions.draw(1, rng.generator(config.seed), config.sizes)  # or says what is wrong
        return {"sizes": [config.sizes] * config.n}
    if config.formula is not None:
        numbers = numbers_of_formula(config.formula)
        known = flow.compositions.elements
        if not known:
            raise UsageError("formula: this model knows no elements; give sizes instead.")
        if strange := sorted(set(numbers) - set(known)):
            raise UnknownElement(
                f"formula={config.formula}: {', '.join(map(symbol, strange))} is not among the "
                f"model's elements ({', '.join(map(symbol, known))})."
            )
        return {"numbers": [numbers] * config.n}
    if config.like is None:
        return {}
    templates = read(config.like, flow.dimension)
    turn = [place % len(templates) for place in range(config.n)]
    if not flow.compositions.elements:
        return {"sizes": templates.sizes[turn].tolist()}
    with_known_elements(templates, flow.compositions.elements, "stop")
    each = [cloud.numbers for cloud in templates]
    return {"numbers": [each[place] for place in turn]}


def _sizes(config: SampleConfig, flow: MolecularFlow) -> dict[str, list[Any]]:
    """All that can be fixed of molecules whose elements are drawn as well."""
    if config.formula is not None:
        raise UsageError("formula: this model draws the elements itself; give sizes or like.")
    if config.sizes is not None and config.sizes < 1:
        raise UsageError(f"sizes: found {config.sizes}, expected at least 1.")
    if config.sizes is not None:
        return {"sizes": [config.sizes] * config.n}
    if config.like is None:
        return {}
    each = read(config.like, flow.dimension).sizes.tolist()
    return {"sizes": [each[place % len(each)] for place in range(config.n)]}


def _one_size(makeup: dict[str, list[Any]], flow: Flow | MolecularFlow) -> bool:
    """Whether all structures will have one number of points."""
    if "sizes" in makeup:
        return len(set(makeup["sizes"])) == 1
    if "numbers" in makeup:
        return len({len(numbers) for numbers in makeup["numbers"]}) == 1
    if isinstance(flow, MolecularFlow):
        return len(flow.sizes.sizes) == 1
    return len(flow.compositions.counts.sum(1).unique()) == 1
