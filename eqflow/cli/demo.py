"""`eqflow demo`: the whole job on what the package brings along, in a few minutes, with pictures.

Nothing but the public verbs, each printed as one would type it, and pictures of what they left. A
second run into the same folder goes on where the first one stopped.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqflow import rng, storage
from eqflow.chem.formula import numbers_of_formula
from eqflow.chem.g2 import load_g2
from eqflow.cli import check, sample, score, train
from eqflow.cli.compose import composed
from eqflow.cli.schemas import DemoConfig
from eqflow.cli.terminal import Terminal, duration
from eqflow.data import read, write
from eqflow.errors import ExitCode, UsageError
from eqflow.evaluate import effective_sample_size, kl_to_target, negative_log_likelihood
from eqflow.evaluate.distances import bond_lengths, bonded_pairs, pair_distances, wasserstein
from eqflow.geometry import Clouds
from eqflow.targets import DW4
from eqflow.train import load

if TYPE_CHECKING:
    from eqflow.flows import Flow

RUN: dict[str, Callable[[Any], ExitCode]] = {
    "train": train.run,
    "sample": sample.run,
    "score": score.run,
    "check": check.run,
}
# Small networks on small clouds: a second thread waits more than it helps.
THREADS = 1
ELEMENTS = ("H", "C", "N", "O", "F")
FORMULAS = ("CH4", "C2H6O")
MOLECULES = 200
CHECKED = 4
# Exact samples for the pictures; the first of them, and of the draws, are scored.
EXACT, SCORED = 5000, 500
ROWS, FRAMES = 3, 25


class Stopped(Exception):
    """A verb ended by a signal, after saving; the demo ends with its exit code."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def run(config: DemoConfig) -> ExitCode:
    """Run everything, print the figures and where the pictures are; exit 4 if a law fails."""
    _require_sensible(config)
    out = Path(config.out)
    storage.require_writable(out)
    started = time.monotonic()
    demo = Demo(config, out)
    try:
        figures = {"dw4": demo.particles(), "molecules": demo.molecules()}
    except Stopped as stopped:
        return stopped.code
    seconds = round(time.monotonic() - started, 1)
    report = {**figures, "pictures": [str(path) for path in demo.pictures], "seconds": seconds}
    storage.write_text(out / "demo.json", json.dumps(_plain(report), indent=2))
    demo.say("", "pictures:", *(f"  {path}" for path in demo.pictures))
    demo.say(f"figures: {out / 'demo.json'}", f"total: {duration(seconds)}")
    if ExitCode.NUMERICAL in demo.codes:
        demo.say("a law fails, see above")
        return ExitCode.NUMERICAL
    return ExitCode.PARTIAL if ExitCode.PARTIAL in demo.codes else ExitCode.DONE


class Demo:
    """The two halves of the demo and what they leave.

    Args:
        config: How long to train and how much to draw.
        out: Folder for everything.

    Attributes:
        pictures: Files written.
        codes: Exit codes of the verbs that ran.
    """

    def __init__(self, config: DemoConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.pictures: list[Path] = []
        self.codes: set[ExitCode] = set()
        self._terminal = Terminal()

    def say(self, *lines: str) -> None:
        """Print lines."""
        for line in lines:
            self._terminal.line(line)

    def verb(self, name: str, *words: str) -> None:
        """Run a verb as if typed.

        Raises:
            Stopped: If a signal ended it.
        """
        self.say("", f"$ {shlex.join(['eqflow', name, *words])}")
        started = time.monotonic()
        code = RUN[name](composed(name, words))
        if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
            raise Stopped(code)
        self.codes.add(code)
        self.say(f"({duration(time.monotonic() - started)})")

    def particles(self) -> dict[str, Any]:
        """DW4: train, draw, score held-out structures and the draws, check; the figures."""
        config, folder, target = self.config, self.out / "dw4", DW4()
        samples, held_out = folder / "samples.npy", folder / "held_out.npy"
        self.say("# Four particles in a double well, whose density is known")
        self.verb(
            "train",
            "experiment=dw4",
            f"run.dir={folder}",
            f"seed={config.seed}",
            "data.structures=30000",
            f"train.minutes={config.particle_minutes:g}",
            "train.ema_decay=0.995",
            "train.validate_every=250",
            "train.log_every=10",
            "train.final_structures=0",
            f"train.threads={THREADS}",
        )
        self.verb(
            "sample",
            f"run={folder}",
            f"n={config.samples}",
            f"seed={config.seed}",
            f"out={samples}",
            f"threads={THREADS}",
        )
        fresh = target.sample(EXACT, rng.derived_seed(config.seed, "demo", "held out"))
        write(Clouds.from_dense(fresh), held_out)
        for path in (held_out, samples):
            self.verb(
                "score",
                f"run={folder}",
                f"data.path={path}",
                f"data.structures={min(SCORED, config.samples)}",
                f"out={path.with_suffix('.csv')}",
                "divergence=exact",
                f"threads={THREADS}",
            )
        self._check(folder)

        flow, drawn = load(folder), read(samples)
        x = drawn.segments.to_dense(drawn.x.double())
        log_model = _log_prob(held_out.with_suffix(".csv"))
        nll = negative_log_likelihood(log_model)
        kl = kl_to_target(target.log_prob(fresh[: len(log_model)].double()), log_model)
        log_model = _log_prob(samples.with_suffix(".csv"))
        ess = effective_sample_size(target.log_prob(x[: len(log_model)]), log_model)
        # The first of the draws again: the verb told of their cost, and did not store it.
        again = flow.draw(min(256, config.samples), seed=config.seed)
        evaluations = int(again.evaluations.max())
        self.say(
            "",
            f"DW4: {nll.count:,} held-out structures scored with the exact trace",
            f"  NLL                        {nll} nats (of the target itself: "
            f"{target.entropy.value:.4g})",
            f"  KL(target ‖ model)         {kl} nats",
            f"  effective sample size      {100 * ess:.1f} % of {len(log_model):,} samples",
            f"  evaluations of the field   {evaluations} a sample",
        )
        self._picture_particles(target, fresh, drawn, flow)
        return {
            "nll": nll.value,
            "nll_se": nll.se,
            "kl": kl.value,
            "kl_se": kl.se,
            "ess": ess,
            "evaluations": evaluations,
            "scored": nll.count,
            "samples": len(drawn),
        }

    def molecules(self) -> dict[str, Any]:
        """The G2 molecules that ship inside ASE: train, draw, check; the figures."""
        config, folder = self.config, self.out / "molecules"
        samples = folder / "samples.extxyz"
        self.say("", "# Molecules: positions given the elements")
        self.verb(
            "train",
            "experiment=qm9_positions",
            "data.source=g2",
            f"data.elements={','.join(ELEMENTS)}",
            "data.validation=0.1",
            "data.test=0.1",
            f"run.dir={folder}",
            f"seed={config.seed}",
            "model.layers=4",
            f"train.minutes={config.molecule_minutes:g}",
            "train.ema_decay=0.99",
            "train.validate_every=250",
            "train.log_every=10",
            "train.final_structures=0",
            f"train.threads={THREADS}",
        )
        drawing = (f"run={folder}", f"seed={config.seed}", f"threads={THREADS}")
        self.verb("sample", *drawing, f"n={MOLECULES}", f"out={samples}")
        for formula in FORMULAS:
            out = folder / f"{formula}.xyz"
            self.verb("sample", *drawing, f"formula={formula}", "n=20", f"out={out}")
        self._check(folder)

        flow, drawn, data = load(folder), read(samples), load_g2(ELEMENTS, min_atoms=2)
        away = wasserstein(pair_distances(data), pair_distances(drawn))
        bonds, drawn_bonds = bond_lengths(data), bond_lengths(drawn)
        self.say("", f"molecules: {len(drawn)} drawn, against the {len(data)} of G2")
        self.say(f"  pair distances are {away:.2g} Å apart (Wasserstein)")
        for pair in list(bonds)[:3]:
            lengths = drawn_bonds.get(pair, torch.empty(0))
            self.say(f"  {pair} bonds: {_spread(bonds[pair])} in G2, {_spread(lengths)} drawn")
        self._picture_molecules(data, drawn, flow)
        return {"pair_distance_wasserstein": away, "samples": len(drawn)}

    def _check(self, folder: Path) -> None:
        self.verb(
            "check",
            f"run={folder}",
            f"seed={self.config.seed}",
            f"structures={CHECKED}",
            f"out={folder / 'check.json'}",
            f"threads={THREADS}",
        )

    def _picture_particles(self, target: DW4, data: Tensor, drawn: Clouds, flow: Flow) -> None:
        from eqflow import view  # matplotlib is slow to import, and no other verb needs it

        pictures = self.out / "pictures"
        exact = Clouds.from_dense(data)
        self.pictures += [
            view.energies(
                target.energy(data),
                target.energy(drawn.segments.to_dense(drawn.x)),
                pictures / "dw4_energies.png",
                title="DW4: energy of samples of the flow against exact samples",
            ),
            view.distances(
                pair_distances(exact),
                pair_distances(drawn),
                pictures / "dw4_distances.png",
                title="DW4: pair distances of samples of the flow against exact samples",
                unit="",
            ),
            view.losses(
                self.out / "dw4" / "metrics.csv",
                pictures / "dw4_loss.png",
                title="DW4: flow matching, loss per degree of freedom",
            ),
            view.trajectory(
                flow.trajectory(ROWS, FRAMES, self.config.seed),
                pictures / "dw4_trajectory.png",
                title="DW4: from noise to structure, with the way each particle came",
                unit="",
            ),
        ]

    def _picture_molecules(self, data: Clouds, drawn: Clouds, flow: Flow) -> None:
        from eqflow import view

        pictures = self.out / "pictures"
        formula = FORMULAS[-1]
        frames = flow.trajectory(
            ROWS, FRAMES, self.config.seed, numbers=numbers_of_formula(formula)
        )
        self.pictures += [
            view.distances(
                pair_distances(data),
                pair_distances(drawn),
                pictures / "molecules_distances.png",
                title="Molecules: pair distances of samples of the flow against G2",
            ),
            view.bonds(
                bond_lengths(data),
                bond_lengths(drawn),
                pictures / "molecules_bonds.png",
                title="Molecules: bond lengths of samples of the flow against G2",
            ),
            view.losses(
                self.out / "molecules" / "metrics.csv",
                pictures / "molecules_loss.png",
                title="Molecules: flow matching, loss per degree of freedom",
            ),
            view.trajectory(
                frames,
                pictures / "molecules_trajectory.png",
                bonds=[bonded_pairs(frame) for frame in frames],
                title=f"{formula}: from noise to structure, atoms nearer than 1.3 × the sum of "
                "their covalent radii joined",
            ),
        ]


def _require_sensible(config: DemoConfig) -> None:
    problems = [
        f"{name}: found {value}, expected above 0."
        for name, value in (
            ("particle_minutes", config.particle_minutes),
            ("molecule_minutes", config.molecule_minutes),
        )
        if not value > 0
    ]
    if config.samples < 2:
        problems.append(f"samples: found {config.samples}, expected at least 2.")
    if problems:
        raise UsageError("\n".join(problems))


def _log_prob(scores: Path) -> Tensor:
    """Log-likelihoods in nats from a scores file, shape (B,)."""
    with scores.open(newline="", encoding="utf-8") as file:
        values = [float(row["log_prob"]) for row in csv.DictReader(file)]
    return torch.tensor(values, dtype=torch.float64)


def _spread(lengths: Tensor) -> str:
    if len(lengths) < 2:
        return f"{len(lengths)} bonds"
    return f"{float(lengths.mean()):.3f} ± {float(lengths.std()):.3f} Å"


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: null stands for a figure that could not be computed."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
