"""`eqflow sample`: draw structures from a trained run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqflow import rng, storage
from eqflow.chem.elements import symbol
from eqflow.chem.formula import numbers_of_formula
from eqflow.cli.conditions import conditions_of, solver_of
from eqflow.cli.schemas import SampleConfig
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_run, overridden, required_output
from eqflow.data import read, with_known_elements, writable_ending, write, write_molecules
from eqflow.data.files import WRITERS
from eqflow.errors import ExitCode, SolverFailed, UnknownElement, UsageError
from eqflow.evaluate.bonded import ORIGIN, PERCEIVED, with_bonds
from eqflow.flows import AbstractMolecularFlow, Flow, Status
from eqflow.geometry import Clouds

if TYPE_CHECKING:
    import rdkit.Chem


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
    ending = writable_ending(out, dimension=flow.dimension, one_size=_one_size(makeup, flow))
    conditions, notices = conditions_of(config, flow)
    solver = overridden(solver_of(config, flow), config.solver)
    storage.require_writable(out.parent)

    terminal = Terminal()
    terminal.line(f"sample {config.n:,} structures from {config.run} by {solver.method}, to {out}")
    for line in [*notices, *_beyond(makeup, flow)]:
        terminal.line(line)
    parts: list[Clouds] = []
    evaluations = failed = 0
    for first in range(0, config.n, config.batch):
        options: dict[str, Any] = {
            key: each[first : first + config.batch] for key, each in makeup.items()
        }
        drawn = flow.draw(
            min(config.batch, config.n - first),
            seed=config.seed if first == 0 else rng.derived_seed(config.seed, "batch", first),
            solver=solver,
            **options,
            **conditions,
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
    if lost := _not_held(samples, ending):
        terminal.line(f"{ending} holds no {lost}: they are left out; .extxyz holds them")
    if config.bonds and ending == ".sdf" and samples.numbers is not None:
        terminal.line(_written_with_bonds(samples, out, terminal))
    else:
        write(samples, out)
    terminal.line(f"at most {evaluations} evaluations of the field a structure")
    if failed:
        terminal.line(f"left out: {failed} structures whose integration failed")
    terminal.line(f"done: {len(samples):,} structures in {out}")
    return ExitCode.PARTIAL if failed else ExitCode.DONE


def _beyond(makeup: dict[str, list[Any]], flow: Flow | AbstractMolecularFlow) -> Iterator[str]:
    """A line where molecules of sizes are asked for that no training molecule has."""
    if isinstance(flow, AbstractMolecularFlow) and "sizes" in makeup:
        known = flow.sizes.sizes
        if strange := sorted(set(makeup["sizes"]) - set(known.tolist())):
            shown = ", ".join(map(str, strange[:5])) + (", …" if len(strange) > 5 else "")
            yield (
                f"no training molecule has {shown} atoms (they have {int(known.min())} to "
                f"{int(known.max())}): what is drawn there is extrapolated"
            )


def _not_held(samples: Clouds, ending: str) -> str:
    """What structures have that a format does not hold."""
    numbers = "elements" if samples.numbers is not None and ending == ".npy" else ""
    charges = "formal charges" if samples.charges is not None and ending in (".npy", ".xyz") else ""
    return " and ".join(filter(None, (numbers, charges)))


def _written_with_bonds(samples: Clouds, out: Path, terminal: Terminal) -> str:
    """Write molecules as SDF; a line that says where their bonds are from."""
    origins: Counter[str] = Counter()

    def molecules() -> Iterator[rdkit.Chem.Mol]:
        for molecule in with_bonds(samples):
            origins[molecule.GetProp(ORIGIN)] += 1
            terminal.progress(f"{origins.total():,}/{len(samples):,} molecules with bonds")
            yield molecule

    count = write_molecules(molecules(), out, samples.x.dtype)
    perceived = origins[PERCEIVED]
    return (
        f"bonds: {perceived:,} molecules as RDKit perceives them, {count - perceived:,} by the "
        "distance table"
    )


def _makeup(config: SampleConfig, flow: Flow | AbstractMolecularFlow) -> dict[str, list[Any]]:
    """What fixes the make-up of each structure, as `sizes` or `numbers` of `draw`."""
    if isinstance(flow, AbstractMolecularFlow):
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


def _sizes(config: SampleConfig, flow: AbstractMolecularFlow) -> dict[str, list[Any]]:
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


def _one_size(makeup: dict[str, list[Any]], flow: Flow | AbstractMolecularFlow) -> bool:
    """Whether all structures will have one number of points."""
    if "sizes" in makeup:
        return len(set(makeup["sizes"])) == 1
    if "numbers" in makeup:
        return len({len(numbers) for numbers in makeup["numbers"]}) == 1
    if isinstance(flow, AbstractMolecularFlow):
        return len(flow.sizes.sizes) == 1
    return len(flow.compositions.counts.sum(1).unique()) == 1
