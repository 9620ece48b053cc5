"""Claim: the sampler mixes, and log Z is known. Virials, constants by method, and times.

Run `python benchmarks/targets.py [dw4] [lj13] [lj55]`; with no names it does all, in about fifteen
minutes of one core. Prints a table and writes `benchmarks/results/targets.json`, adding to what is
there. The figures for LJ13 and LJ55 are the ones kept in `eqflow/targets/lennard_jones.py`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from eqflow import storage
from eqflow.targets import DW4, AbstractTarget, target_by_name
from eqflow.targets.free_energy import Estimate, standard_error

RESULTS = Path(__file__).parent / "results" / "targets.json"
DRAWS = {"dw4": 200_000, "lj13": 100_000, "lj55": 4_000}
TIMED = {"dw4": 1_000, "lj13": 10_000, "lj55": 1_000}


def measured(name: str, target: AbstractTarget) -> dict[str, object]:
    """One long run and the time of one ordinary `sample` call."""
    start = time.perf_counter()
    target.sample(TIMED[name], seed=1)
    seconds = time.perf_counter() - start

    start = time.perf_counter()
    run = target.sample_report(DRAWS[name], seed=0)
    virial = torch.stack([target.virial(draw) for draw in run.x])
    shifts = (virial.mean(0) - virial.mean()) / virial.shape[1]
    return {
        "draws": virial.numel(),
        "degrees_of_freedom": target.degrees_of_freedom,
        "virial": Estimate(float(virial.mean()), standard_error(shifts)),
        "log_z": run.log_z,
        "mean_energy": run.mean_energy,
        "entropy": run.entropy,
        "effective_size": run.effective_size,
        "rungs": run.fractions.numel(),
        "swaps": run.swaps.tolist(),
        "seconds": time.perf_counter() - start,
        f"seconds_sample_{TIMED[name]}": seconds,
    }


def quadrature(target: DW4) -> dict[str, object]:
    """The same constants without a single random number."""
    start = time.perf_counter()
    constants = target.thermodynamics
    return {
        "degrees_of_freedom": target.degrees_of_freedom,
        "virial": Estimate(target.quadrature.virial, 0.0),
        **constants._asdict(),
        "seconds": time.perf_counter() - start,
    }


def main(names: list[str]) -> None:
    """Measure the targets named, all by default."""
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or list(DRAWS):
        target = target_by_name(name)
        if isinstance(target, DW4):
            results[f"{name}, quadrature"] = quadrature(target)
        results[f"{name}, tempering"] = measured(name, target)
        storage.write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    columns = ["virial", "log_z", "mean_energy", "entropy"]
    print(f"{'':18}" + "".join(f"{column:>24}" for column in columns) + f"{'seconds':>10}")
    for row, values in results.items():
        cells = "".join(f"{Estimate(*values[column])!s:>24}" for column in columns)
        print(f"{row:18}{cells}{values['seconds']:10.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
