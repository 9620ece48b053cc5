"""Three ways to be equivariant, at equal training: scalars (EGNN), irreps (e3nn), averaging.

Each model is trained by the public command on the same system with the same objective, for as many
steps as fit the CPU seconds given: their cost is measured first, so that a busy machine changes
nothing but the time it takes. Then: NLL of held-out structures by one solver and one estimator of
the divergence for all, cost of a step and of an evaluation, and the error of equivariance of the
trained field in float32 and float64. The averaged transformer is trained on one pose drawn for each
structure and step, and evaluated on its whole frame.

    python benchmarks/three_ways.py dw4|lj13|qm9_positions MINUTES [data.path=…] [MODEL …]
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, race, write_results

from eqflow.cli.main import main as eqflow_command
from eqflow.edges import Edges
from eqflow.evaluate import negative_log_likelihood
from eqflow.flows import AbstractDivergence, Exact, Flow, Hutchinson, Solver
from eqflow.geometry import Clouds
from eqflow.targets import target_by_name
from eqflow.testing import equivariance_error
from eqflow.train.config import DataConfig
from eqflow.train.datasets import load_dataset
from eqflow.train.weights import load_with_config

MODELS = {
    "egnn": ["model=egnn", "model.attention=false", "model.coordinate_range=null"],
    "e3nn, l ≤ 1": ["model=e3nn", "model.lmax=1"],
    "e3nn, l ≤ 2": ["model=e3nn", "model.lmax=2"],
    "frame_transformer": ["model=frame_transformer"],
    "frame_transformer, pca": ["model=frame_transformer", "model.frame=pca"],
}
SHARED = ["model.layers=3", "model.width=64", "model.time_frequencies=3"]
OWN = {name: ["model.width=32"] for name in MODELS if "e3nn" in name}  # copies of each irrep
TRIED = 40  # steps by which the cost of one is measured
LIKELIHOOD = Solver("rk4", steps=6)
SCORED = {"dw4": 1000, "lj13": 32, "qm9_positions": 32}
TIMED = {"dw4": 256, "lj13": 16, "qm9_positions": 16}
DIVERGENCE: dict[str, AbstractDivergence] = {
    "dw4": Exact(),
    "lj13": Hutchinson(4),
    "qm9_positions": Hutchinson(4),
}
FRESH_SEED = 1_000_001


def main() -> None:
    """Train and measure the models of one system; results of others are kept."""
    system, minutes, *rest = sys.argv[1:]
    data = [rest.pop(0)] if rest and rest[0].startswith("data.path=") else []
    torch.set_num_threads(1)
    path = RESULTS / f"three_ways_{system}.json"
    table = json.loads(path.read_text("utf-8")) if path.exists() else {}
    table.pop("machine", None)
    for name in rest or MODELS:
        folder = trained(system, name, 60 * float(minutes), data)
        table[name] = measured(system, folder)
        print(name, json.dumps(table[name], indent=1), flush=True)
        write_results(f"three_ways_{system}", table)


def trained(system: str, name: str, seconds: float, data: list[str]) -> Path:
    """A run of as many steps as fit the CPU seconds."""
    folder = Path("runs") / f"three_ways_{system}_{re.sub('[^a-z0-9]+', '_', name)}"
    words = [*SHARED, *MODELS[name], *OWN.get(name, []), *data, "train.threads=1"]
    words += ["objective=flow_matching", "train.final_structures=1", "train.log_every=100"]
    if not (folder / "summary.json").exists():
        probe = folder.with_name(f"{folder.name}_probe")
        shutil.rmtree(probe, ignore_errors=True)
        run(system, probe, [*words, f"train.steps={TRIED}", f"train.validate_every={10 * TRIED}"])
        each = json.loads((probe / "summary.json").read_text("utf-8"))["cpu_seconds"] / TRIED
        steps = int(seconds / each)
        run(system, folder, [*words, f"train.steps={steps}", f"train.validate_every={steps // 4}"])
    return folder


def run(system: str, folder: Path, words: list[str]) -> None:
    """Train, or stop here with the exit code of the command."""
    code = eqflow_command(["train", f"experiment={system}", f"run.dir={folder}", *words])
    if code != 0:
        sys.exit(code)


def measured(system: str, folder: Path) -> dict[str, Any]:
    """Figures of a trained run."""
    flow, _ = load_with_config(folder)
    assert isinstance(flow, Flow)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    held_out = unseen(system, folder)
    scored = held_out[: SCORED[system]]
    scores = flow.score(scored, seed=0, divergence=DIVERGENCE[system], solver=LIKELIHOOD)
    nll = negative_log_likelihood(scores.log_prob)
    encoded = flow.encode(held_out[: TIMED[system]])
    field = flow.continuous.field
    edges = Edges.complete(encoded.clouds)
    time = encoded.x.new_tensor(0.5)

    def evaluation() -> None:
        with torch.no_grad():
            field(time, encoded.x, edges, encoded.context)

    seconds = race({"evaluation": evaluation}, rounds=3)["evaluation"]
    return {
        "parameters": sum(weight.numel() for weight in flow.parameters()),
        "training_steps": summary["steps"],
        "training_cpu_seconds": summary["cpu_seconds"],
        "milliseconds_per_step": 1000 * summary["cpu_seconds"] / summary["steps"],
        "validation_loss": summary["val_loss"],
        "nll": nll.value,
        "nll_se": nll.se,
        "nll_per_degree_of_freedom": per_degree_of_freedom(scores.log_prob, scored),
        "scored": len(scored),
        "milliseconds_per_evaluation_and_structure": 1000 * seconds / TIMED[system],
        **{f"equivariance_error_{name}": error(flow, held_out[:4], name) for name in DTYPES},
    }


DTYPES = {"float32": torch.float32, "float64": torch.float64}


def unseen(system: str, folder: Path) -> Clouds:
    """Structures that no training saw: fresh samples of the target, or those held out."""
    _, config = load_with_config(folder)
    if config["data"]["path"] is not None:
        return load_dataset(DataConfig(**config["data"]), config["seed"]).parts["test"]
    return Clouds.from_dense(target_by_name(system).sample(SCORED[system], seed=FRESH_SEED))


def per_degree_of_freedom(log_prob: torch.Tensor, clouds: Clouds) -> float:
    """Mean of −log p divided by the degrees of freedom of each cloud."""
    freedom = (clouds.sizes - 1) * clouds.dimension
    return float((-log_prob / freedom).mean())


def error(flow: Flow, batch: Clouds, dtype: str) -> float:
    """Relative error of the equivariance of the velocity, the worst over motions and clouds."""
    field = deepcopy(flow.continuous.field).to(DTYPES[dtype])
    encoded = flow.encode(batch)
    context = None if encoded.context is None else encoded.context.to(DTYPES[dtype])
    still = Clouds(encoded.x.to(DTYPES[dtype]), encoded.clouds.ptr)

    def velocity(x: torch.Tensor, ptr: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return field(x.new_tensor(0.5), x, Edges.complete(ptr), context)

    return equivariance_error(velocity, still, f"E({still.dimension})", "vector")


if __name__ == "__main__":
    main()
