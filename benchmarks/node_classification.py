"""Accuracy of a preset over seeds, or over the published splits of its data set.

    python benchmarks/node_classification.py DATA PRESET [runs=20] [label=NAME] [key=value …]

DATA is the folder of all data sets. Other words are those of `eqflow train`; with `model=` of
another kind than the preset's, add `preset=none`: of the preset nothing is then taken but its data
and split. Runs differ in their seed, and where the data set has several published
splits, run `k` takes split `k mod S`. Weights are chosen by validation accuracy alone; test nodes
are read once a run. Rows gather in `results/node_classification.json`, by label; what was published
is beside them, and only says what to expect: figures of other splits are not comparable.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write_results
from scipy.stats import t as student

from eqflow.cli.compose import composed
from eqflow.train.node_run import NodeRun

# Folder or file of each preset's data below DATA.
PLACES = {
    "cora": "planetoid/Cora",
    "citeseer": "planetoid/CiteSeer",
    "photo": "graphs/amazon_photo.npz",
    "computers": "graphs/amazon_computers.npz",
    "coauthor_cs": "graphs/coauthor_cs.npz",
    "texas": "graphs/het_texas.npz",
    "cornell": "graphs/het_cornell.npz",
    "wisconsin": "graphs/het_wisconsin.npz",
    "actor": "graphs/het_actor.npz",
    "chameleon": "graphs/het_chameleon_filtered.npz",
    "squirrel": "graphs/het_squirrel_filtered.npz",
}
QUIET = ["train.tensorboard=false", "train.checkpoint_every=1000000", "train.threads=1"]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, and half the width of a 95 % interval of the mean."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    half = student.ppf(0.975, max(len(values) - 1, 1)) * spread / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "sd": spread, "ci95": float(half)}


def trained(words: list[str]) -> dict[str, Any]:
    """Final figures of one run, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        config = composed("train", [*words, f"run.dir={folder}/run"])
        run = NodeRun(config, lambda line: None)
        run.train(lambda: False, lambda trainer, figures: None)
        return json.loads((Path(folder) / "run" / "summary.json").read_text("utf-8"))


def main(data: Path, preset: str, runs: int, label: str, words: list[str]) -> None:
    """Train `runs` times and add a row to the results."""
    torch.set_num_threads(1)
    base = [f"experiment={preset}", f"data.path={data / PLACES[preset]}", *QUIET, *words]
    if words and "preset=none" in words:
        words = [word for word in words if word != "preset=none"]
        like = composed("train", [f"experiment={preset}"]).data
        base = [
            "task=node_classification",
            f"data.source={like.source}",
            f"data.split={like.split}",
        ]
        base += [f"name={preset}", f"data.path={data / PLACES[preset]}", *QUIET, *words]
    splits = 10 if "het_" in PLACES[preset] else 1
    found = []
    for number in range(runs):
        chosen = [f"seed={number}"]
        if splits > 1:
            chosen.append(f"data.split_index={number % splits}")
        found.append(trained([*base, *chosen]))
        print(f"{label} {number}: test {100 * found[-1]['test_accuracy']:.1f}", flush=True)
    row: dict[str, Any] = {"preset": preset, "words": words, "runs": runs}
    row["split"] = sorted({one["split"] for one in found})
    for name in ("test_accuracy", "val_accuracy"):
        row[name] = interval([100 * one[name] for one in found])
    for name in ("cpu_seconds", "best_step", "evaluations", "steps"):
        row[name] = statistics.mean(one[name] for one in found)
    test = row["test_accuracy"]
    print(
        f"{label}: test {test['mean']:.1f} ± {test['sd']:.1f} (mean ± {test['ci95']:.1f}), "
        f"validation {row['val_accuracy']['mean']:.1f}, {row['cpu_seconds']:.1f} CPU-s a run"
    )
    path = RESULTS / "node_classification.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else {}
    write_results("node_classification", {"rows": rows | {label: row}})


if __name__ == "__main__":
    options = dict(word.split("=", 1) for word in sys.argv[3:])
    runs = int(options.pop("runs", 20))
    label = options.pop("label", sys.argv[2])
    main(
        Path(sys.argv[1]),
        sys.argv[2],
        runs,
        label,
        [f"{key}={value}" for key, value in options.items()],
    )
