"""Elements of QM9 molecules on a continuous path and on a discrete one, at equal training.

Trains `model=categorical_egnn`, whose one-hot elements are carried by an ODE as positions are, and
`model=masked_egnn`, whose elements are masked and revealed, for as many steps of the same network;
draws molecules from each in 50 Euler steps and takes the metrics of the distance tables. The two
train side by side, a thread each, so that what else the machine does hits both.

    python benchmarks/element_paths.py DATA [--steps 3200] [--count 500] [--runs FOLDER]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from harness import write_results

from eqflow.cli.compose import composed
from eqflow.evaluate import bonds_of, table_metrics
from eqflow.flows import Solver, Status
from eqflow.train import Run
from eqflow.train.weights import load

SOLVER = Solver(method="euler", steps=50)
# Draws of each model: the options of `draw` besides the solver.
DRAWS: dict[str, dict[str, dict[str, float]]] = {
    "categorical_egnn": {"as_trained": {}},
    "masked_egnn": {
        "as_trained": {},
        "temperature_0.5": {"temperature": 0.5},
        "remasking_5": {"remasking": 5.0},
    },
}


def main() -> None:
    """Train, draw, print and write."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("data")
    words.add_argument("--steps", type=int, default=3200)
    words.add_argument("--count", type=int, default=500)
    words.add_argument("--runs", type=Path, default=Path("runs/element_paths"))
    asked = words.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(DRAWS), mp_context=spawn) as pool:
        running = {
            model: pool.submit(measured, model, asked.data, asked.steps, asked.count, asked.runs)
            for model in DRAWS
        }
        results = {model: each.result() for model, each in running.items()}
    write_results("element_paths", {"molecules": asked.count, "euler_steps": 50, **results})


def measured(model: str, data: str, steps: int, count: int, runs: Path) -> dict[str, Any]:
    """Training cost of a model and what its molecules are like."""
    torch.set_num_threads(1)
    folder = runs / model
    options = [
        "experiment=qm9",
        f"model={model}",
        "model.layers=5",
        "model.width=64",
        f"data.path={data}",
        f"train.steps={steps}",
        "train.learning_rate=2e-3",
        "train.validate_every=800",
        "train.final_structures=0",
        "train.tensorboard=false",
        f"run.dir={folder}",
    ]
    Run(composed("train", options), lambda line: print(f"{model}: {line}", flush=True)).train(
        lambda: False, lambda trainer, figures: None
    )
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    flow = load(folder)
    found: dict[str, Any] = {
        "steps": summary["steps"],
        "training_cpu_seconds": summary["cpu_seconds"],
        "weights": sum(weight.numel() for weight in flow.parameters()),
    }
    for name, more in DRAWS[model].items():
        started = time.process_time()
        drawn = flow.draw(count, seed=0, solver=SOLVER, **more)
        figures: dict[str, Any] = {
            "cpu_seconds_a_molecule": (time.process_time() - started) / count,
            "evaluations": int(drawn.evaluations.max()),
            "failed": sum(status is not Status.SUCCESS for status in drawn.status),
        }
        for metric, each in table_metrics(bonds_of(drawn.clouds)).items():
            figures[metric] = {"value": each.value, "low": each.low, "high": each.high}
        print(model, name, json.dumps(figures), flush=True)
        found[name] = figures
    return found


if __name__ == "__main__":
    main()
