"""How molecules are after short trainings of `experiment=qm9`, at about equal CPU times.

Each variant is some words of the command line. What a step of each costs is measured first, in
turns; each then trains for as many as the CPU time allows, its learning rate falling to zero at the
last, and molecules are drawn in 50 Euler steps.

    python benchmarks/recipes.py DATA [--cpu-minutes 3] [--count 500] [--runs FOLDER]
        [--variant NAME WORD …] …

Without `--variant` those of `VARIANTS` run. What is run adds to the results of the same setting
that are there, or replaces them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from harness import earlier_results, race, write_results

from eqflow.cli.compose import composed
from eqflow.evaluate import bonds_of, table_metrics
from eqflow.flows import Solver, Status
from eqflow.train import Run
from eqflow.train.weights import load

SOLVER = Solver(method="euler", steps=50)
# A step of each is measured so many times; the median counts.
TURNS = 11
# What may be added to the preset, one after another.
MUON = ["train.optimizer=muon", "train.learning_rate=3e-3"]
RADIAL = [*MUON, "model.radial=16"]
SMALL = [*RADIAL, "train.batch_size=16"]
NEAR_DATA = [*SMALL, "objective.time_power=1.5"]
QUICK = [*NEAR_DATA, "train.learning_rate=2e-3"]
VARIANTS: dict[str, list[str]] = {
    "preset": [],
    "and muon": MUON,
    "and radial": RADIAL,
    "and small batches": SMALL,
    "and times near data": NEAR_DATA,
    "all of it": QUICK,
    "all but muon": [*QUICK, "train.optimizer=adamw", "train.learning_rate=1.5e-3"],
}


def main() -> None:
    """Train, draw, print and write."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("data")
    words.add_argument("--cpu-minutes", type=float, default=3.0)
    words.add_argument("--count", type=int, default=500)
    words.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    words.add_argument("--variant", nargs="+", action="append", default=[])
    asked = words.parse_args()
    torch.set_num_threads(1)
    chosen = {name: options for name, *options in asked.variant} or VARIANTS
    setting = {"cpu_minutes": asked.cpu_minutes, "molecules": asked.count, "euler_steps": 50}
    costs = step_costs(chosen, asked)
    for name, options in chosen.items():
        steps = round(60 * asked.cpu_minutes / costs[name])
        found = measured(name, [*options, f"train.steps={steps}"], asked)
        print(name, json.dumps(found), flush=True)
        known = earlier_results("recipes", setting).get("variants", {})
        write_results("recipes", {**setting, "variants": {**known, name: found}})


def prepared(name: str, options: list[str], asked: argparse.Namespace) -> Run:
    """The run of a variant."""
    words = [
        "experiment=qm9",
        f"data.path={asked.data}",
        "train.threads=1",
        "train.validate_every=1000000",
        "train.validation_structures=1024",
        "train.final_structures=0",
        "train.tensorboard=false",
        f"run.dir={asked.runs / name.replace(' ', '_')}",
    ]
    # A later word of a variant replaces an earlier one.
    words += [
        f"{key}={value}" for key, value in dict(each.split("=", 1) for each in options).items()
    ]
    return Run(composed("train", words), lambda line: print(f"{name}: {line}", flush=True))


def step_costs(variants: dict[str, list[str]], asked: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of a training step of each variant, measured in turns."""
    trainers = {
        name: prepared(name, options, asked).prepare() for name, options in variants.items()
    }
    return race({name: trainer.step for name, trainer in trainers.items()}, TURNS)


def measured(name: str, options: list[str], asked: argparse.Namespace) -> dict[str, Any]:
    """Training cost of a variant and what its molecules are like."""
    run = prepared(name, options, asked)
    run.train(lambda: False, lambda trainer, figures: None)
    folder = Path(run.config.run.dir or "")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    flow = load(folder)
    started = time.process_time()
    drawn = flow.draw(asked.count, seed=0, solver=SOLVER)
    return {
        "words": options,
        "steps": summary["steps"],
        "training_cpu_seconds": summary["cpu_seconds"],
        "validation_loss": summary["val_loss"],
        "cpu_seconds_a_molecule": (time.process_time() - started) / asked.count,
        "failed": sum(status is not Status.SUCCESS for status in drawn.status),
        **{
            metric: {"value": each.value, "low": each.low, "high": each.high}
            for metric, each in table_metrics(bonds_of(drawn.clouds)).items()
        },
    }


if __name__ == "__main__":
    main()
