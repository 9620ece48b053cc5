"""`eqflow sample`: draw structures from a trained run, batch by batch.

Each batch is in the file when the next is begun (in arrays, those of the last seconds may be
missing); killed or stopped at any moment, the same command draws the batches that are missing, and
ends with the file it would have ended with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqflow import rng, storage
from eqflow.chem.elements import symbol
from eqflow.chem.formula import numbers_of_formula
from eqflow.chem.workers import Worker
from eqflow.cli.conditions import conditions_of, solver_of
from eqflow.cli.growing import ARRAYS, AbstractGrowing, GrowingArrays, GrowingText, Tally
from eqflow.cli.journal import Journal, identity_of
from eqflow.cli.schemas import SampleConfig
from eqflow.cli.signals import Received, Signals, typed_command
from eqflow.cli.terminal import Terminal
from eqflow.cli.trained import load_run, overridden, required_output, seed_of
from eqflow.data import encoded, encoded_molecules, read, with_known_elements, writable_ending
from eqflow.data.files import WRITERS
from eqflow.errors import ExitCode, MemoryExhausted, SolverFailed, UnknownElement, UsageError
from eqflow.evaluate.bonded import ORIGIN, PERCEIVED, with_bonds
from eqflow.evaluate.perception import SECONDS, read_bonds
from eqflow.flows import (
    AbstractMolecularFlow,
    Drawn,
    Flow,
    MaskedMolecularFlow,
    Solver,
    Status,
)
from eqflow.geometry import Clouds
from eqflow.halving import by_halves

if TYPE_CHECKING:
    import rdkit.Chem


def run(config: SampleConfig) -> ExitCode:
    """Draw, write, and say how many integrations failed."""
    for key in ("n", "batch"):
        if getattr(config, key) < 1:
            raise UsageError(f"{key}: found {getattr(config, key)}, expected at least 1.")
    given = [name for name in ("sizes", "formula", "like") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other; give one of them.")
    out = required_output(config.out, list(WRITERS), "samples.extxyz")
    for key, source in (("like", config.like), ("fixed", config.fixed)):
        if source is not None and out.exists() and Path(source).exists() and out.samefile(source):
            raise UsageError(f"out: found {out}, which is read as {key}. Give another file.")
    flow = load_run(config.run, config.device, config.threads)
    makeup = _makeup(config, flow)
    ending = writable_ending(out, dimension=flow.dimension, one_size=_one_size(makeup, flow))
    conditions, notices = conditions_of(config, flow)
    is_revealing = isinstance(flow, MaskedMolecularFlow)
    solver = overridden(solver_of(config, flow), config.solver, is_revealing=is_revealing)
    storage.require_writable(out.parent)

    device = next(flow.parameters()).device
    read_besides = {"like": config.like, "fixed": config.fixed}
    identity = identity_of("sample", config, device, read_besides)
    terminal = Terminal()
    terminal.line(f"sample {config.n:,} structures from {config.run} by {solver.method}, to {out}")
    for line in [*notices, *_beyond(makeup, flow)]:
        terminal.line(line)
    batch = partial(_batch, config, flow, solver, makeup, conditions, terminal)
    with (
        Journal.opened(out, identity, terminal.line) as journal,
        Worker(read_bonds, SECONDS) as worker,
        Signals("this batch") as signals,
    ):
        file = _file(out, ending, config, flow, journal, worker, terminal)
        if out.exists() and not file.done.structures:
            terminal.line(f"{out} is there already, and is replaced")
        earlier = place = file.done.batches * config.batch
        try:
            while place < config.n and not signals.received():
                clouds, tally = batch(place)
                if clouds is not None and place == earlier and (lost := _not_held(clouds, ending)):
                    terminal.line(
                        f"{ending} holds no {lost}: they are left out; .extxyz holds them"
                    )
                file.add(clouds, tally)
                place += config.batch
                terminal.counted(min(place, config.n), config.n, "structures", earlier)
            file.save()
        except Received:
            terminal.line(f"stopped at once; go on with: {typed_command()}")
            return signals.code()
        if place < config.n:
            terminal.line(
                f"stopped and saved after {place:,} of {config.n:,} structures; go on with: "
                f"{typed_command()}"
            )
            return signals.code()
        journal.finish()
    return _told(file.done, config, out, terminal)


def _told(done: Tally, config: SampleConfig, out: Path, terminal: Terminal) -> ExitCode:
    """Lines about what was drawn; the exit code."""
    if not done.structures and len(done.too_large) == config.n:
        raise MemoryExhausted(
            f"none of {config.n:,} structures fits into memory, not even one of "
            f"{min(done.too_large):,} points; nothing was written. Draw smaller ones, or free "
            "memory."
        )
    if not done.structures:
        raise SolverFailed(
            f"none of {config.n:,} integrations arrived; nothing was written. Try another "
            "solver.method, more solver.steps or a larger solver.step_limit, or sizes that the "
            "model was trained on."
        )
    if done.perceived is not None:
        terminal.line(
            f"bonds: {done.perceived:,} molecules as RDKit perceives them, "
            f"{done.structures - done.perceived:,} by the distance table"
        )
    terminal.line(f"at most {done.evaluations} evaluations of the field a structure")
    for line in done.endings.others():
        terminal.line(line)
    if done.halved:
        terminal.line(
            f"did not fit into memory together, and were drawn in parts: {done.halved:,} "
            f"batch{'es' if done.halved > 1 else ''}; with more memory, other structures would "
            "have been drawn there"
        )
    if done.failed:
        terminal.line(f"left out: {done.failed} structures whose integration failed")
        for name in done.endings.first:
            terminal.line(f"{name.lower()}: {Status[name].value}; {done.endings.where(name)}")
    if done.too_large:
        terminal.line(
            f"left out: {len(done.too_large):,} structures of {min(done.too_large):,} points and "
            "more that do not fit into memory"
        )
    terminal.line(f"done: {done.structures:,} structures in {out}")
    return ExitCode.PARTIAL if done.failed or done.too_large else ExitCode.DONE


def _file(
    out: Path,
    ending: str,
    config: SampleConfig,
    flow: Flow | AbstractMolecularFlow,
    journal: Journal,
    worker: Worker,
    terminal: Terminal,
) -> AbstractGrowing:
    """The file to write, from where the journal says that it is."""
    earlier = len(journal.entries)
    file: AbstractGrowing
    if ending in ARRAYS:
        file = GrowingArrays(out, journal)
    else:
        known = isinstance(flow, AbstractMolecularFlow) and flow.types.charges is not None
        bonded = _with_bonds(out, worker, terminal, charges_are_known=known)
        encode = bonded if config.bonds and ending == ".sdf" else None
        file = GrowingText(out, journal, encode or _plain(out))
    if file.done.batches:
        terminal.line(f"goes on after {file.done.batches * config.batch:,} structures")
    elif earlier:
        terminal.line("begins anew: what an earlier process of this command wrote is gone")
    return file


def _batch(
    config: SampleConfig,
    flow: Flow | AbstractMolecularFlow,
    solver: Solver,
    makeup: dict[str, list[Any]],
    conditions: dict[str, Any],
    terminal: Terminal,
    first: int,
) -> tuple[Clouds | None, Tally]:
    """Structures from a place on that arrived, None where there is none, and what came of all.

    Where they do not fit into memory together, halves of them are drawn, of the make-up they have
    together: that large ones do not fit must not make them rare. Where each of their points is then
    differs, as its seed is that of the half.
    """
    places = range(first, min(first + config.batch, config.n))
    asked = {key: conditions[key] for key in ("properties", "fixed") if key in conditions}

    @cache
    def template() -> Clouds:
        own = {key: each[first : places.stop] for key, each in makeup.items()}
        return flow.make_up(len(places), seed=seed_of(config.seed, first), **own, **asked)

    def drawn(chosen: Sequence[int]) -> Drawn:
        options: dict[str, Any] = {
            key: each[chosen[0] : chosen[-1] + 1] for key, each in makeup.items()
        }
        if len(chosen) < len(places):
            some = template()[chosen[0] - first : chosen[-1] + 1 - first]
            options = {"sizes": some.sizes.tolist()}
            if some.numbers is not None:
                options = {"numbers": [cloud.numbers for cloud in some]}
        seed = seed_of(config.seed, chosen[0])
        return flow.draw(
            len(chosen),
            seed=seed,
            solver=solver,
            fallback=config.fallback,
            **options,
            **conditions,
        )

    tally, parts = Tally(batches=1), []
    done, too_large = by_halves(places, drawn)
    tally.halved = int(len(done) + len(too_large) > 1)
    for place in too_large:
        points = int(template()[place - first].sizes)
        terminal.line(f"left out: structure {place} of {points:,} points does not fit into memory")
        tally.too_large.append(points)
    for chosen, part in done:
        arrived = [i for i, status in enumerate(part.status) if status is Status.SUCCESS]
        tally.structures += len(arrived)
        tally.failed += len(part.status) - len(arrived)
        tally.evaluations = max(tally.evaluations, int(part.evaluations.max()))
        tally.endings.take(chosen, part)
        parts += [part.clouds[arrived]] if arrived else []
    return Clouds.join(parts) if parts else None, tally


def _plain(out: Path) -> Callable[[Clouds, Tally], bytes]:
    return lambda clouds, tally: encoded(clouds, out)


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


def _with_bonds(
    out: Path, worker: Worker, terminal: Terminal, *, charges_are_known: bool
) -> Callable[[Clouds, Tally], bytes]:
    """Molecules as SDF with bonds, counting where these are from."""

    def encode(clouds: Clouds, tally: Tally) -> bytes:
        if clouds.numbers is None:
            return encoded(clouds, out)
        origins: Counter[str] = Counter()

        def molecules() -> Iterator[rdkit.Chem.Mol]:
            for molecule in with_bonds(clouds, worker=worker, charges_are_known=charges_are_known):
                origins[molecule.GetProp(ORIGIN)] += 1
                terminal.progress(f"{origins.total():,}/{len(clouds):,} molecules with bonds")
                yield molecule

        content = encoded_molecules(molecules(), out, clouds.x.dtype)
        tally.perceived = origins[PERCEIVED]
        return content

    return encode


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
