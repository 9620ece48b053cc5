"""The metrics of molecules on the molecules of a data set: what a perfect model would reach.

Stability by the distance tables of the whole data; every metric of one random part against another,
as if the first had been drawn; seconds of CPU for 1,000 molecules by group of metrics.

    python benchmarks/molecule_metrics.py DATA [COUNT] [--smiles FILE] [--posebusters N]

DATA is the path of QM9 as `load_qm9` takes it; FILE has one SMILES a line, gzipped or not.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import write_results

from eqflow import rng
from eqflow.data import load_qm9
from eqflow.evaluate import (
    Bonds,
    Compared,
    atom_stability,
    bonds_of,
    bust,
    canonical_smiles,
    check_molecules,
    distribution_distances,
    metrics_table,
    molecule_metrics,
    molecule_stability,
    perceive,
    strain_energies,
)
from eqflow.geometry import Clouds

TIMED = 1000
TIMED_POSES = 100


def main() -> None:
    """Measure, print and write."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("data")
    words.add_argument("count", nargs="?", type=int, default=10_000)
    words.add_argument("--smiles", type=Path)
    words.add_argument("--posebusters", type=int, default=0)
    asked = words.parse_args()
    torch.set_num_threads(1)
    molecules = load_qm9(asked.data)
    results: dict[str, Any] = {"stability": stability(molecules)}
    print(results["stability"])
    order = rng.permutation(len(molecules), rng.generator(0, "parts"))
    first, second = (molecules[part] for part in order[: 2 * asked.count].tensor_split(2))
    training, refused = read_smiles(asked.smiles)
    results |= {"training_smiles": len(training or ()), "training_smiles_refused": refused}
    metrics = molecule_metrics(first, second, training, busted=asked.posebusters)
    print(metrics_table(metrics))
    results["molecules"] = {"drawn": len(first), "held_out": len(second)}
    results["metrics"] = {name: plain(metric) for name, metric in metrics.items()}
    results["cpu_seconds_per_1000"] = seconds(first, second, asked.posebusters > 0)
    print(results["cpu_seconds_per_1000"])
    write_results("molecule_metrics", results)


def stability(molecules: Clouds) -> dict[str, Any]:
    """Of all molecules, with the seconds it took."""
    began = _cpu()
    bonds = bonds_of(molecules)
    return {
        "molecules": len(molecules),
        "atoms_stable": atom_stability(bonds)._asdict(),
        "molecules_stable": molecule_stability(bonds)._asdict(),
        "cpu_seconds": _cpu() - began,
    }


def read_smiles(path: Path | None) -> tuple[set[str] | None, int]:
    """Canonical SMILES of a file of one a line, below a heading, and how many are none."""
    if path is None:
        return None, 0
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return canonical_smiles(line.strip() for line in list(lines)[1:])


def seconds(drawn: Clouds, reference: Clouds, with_poses: bool) -> dict[str, float]:
    """CPU seconds for 1,000 molecules, worker processes and their start included."""
    some, others = drawn[:TIMED], bonds_of(reference[:TIMED])
    bonds: list[Bonds] = []
    taken = {
        "bonds and stability": _timed(lambda: bonds.append(_stable(some)), some),
        "validity and SMILES": _timed(lambda: check_molecules(bonds[0]), some),
        "perception": _timed(lambda: perceive(some), some),
    }
    read = perceive(some)
    taken["strain"] = _timed(lambda: strain_energies(read), some)
    if with_poses:
        taken["PoseBusters"] = _timed(lambda: bust(read[:TIMED_POSES]), some[:TIMED_POSES])
    taken["distances with intervals"] = _timed(
        lambda: distribution_distances(bonds[0], others), some
    )
    return taken


def plain(metric: Compared) -> dict[str, Any]:
    """A metric as JSON has it; a number that is none is null."""
    sides = {"drawn": metric.drawn, "held_out": metric.held_out}
    return {"unit": metric.unit} | {
        name: {key: None if value != value else value for key, value in side._asdict().items()}
        for name, side in sides.items()
    }


def _stable(molecules: Clouds) -> Bonds:
    bonds = bonds_of(molecules)
    atom_stability(bonds)
    molecule_stability(bonds)
    return bonds


def _timed(work: Callable[[], object], molecules: Clouds) -> float:
    began = _cpu()
    work()
    return (_cpu() - began) * 1000 / len(molecules)


def _cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
