"""Molecules drawn with a property that was asked for, by guidance, and around atoms, by rounds.

A joint flow of QM9's molecules of 12 to 16 atoms is trained on the radius of gyration of their
atoms, for which the answer can be computed from what is drawn. Then molecules of 16 atoms are drawn
with radii of held-out molecules of 16 atoms, so that the size says nothing about the radius. Last,
the same flow grows 16 atoms around the heavy atoms of held-out molecules of 16 atoms.

    python benchmarks/conditional.py DATA [steps=3500] [drawn=200]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from harness import write_results
from torch import Tensor

import eqflow
from eqflow import rng
from eqflow.evaluate import bonds_of, table_metrics
from eqflow.flows import (
    AbstractFlow,
    EquivariantOT,
    Fixed,
    FlowMatching,
    Properties,
    PropertyDropout,
    Sizes,
    Solver,
    Status,
)
from eqflow.geometry import Clouds, centred
from eqflow.train.build import build_molecular_flow
from eqflow.train.config import CategoricalModelConfig, SolverConfig, TrainConfig
from eqflow.train.datasets import spread
from eqflow.train.loop import Trainer

NAME = "radius_of_gyration"
SMALLEST, SIZE = 12, 16
TRAINED, HELD_OUT = 20_000, 256
UNCONDITIONAL = 0.1
GUIDANCE = (0.0, 1.0, 2.0)
ROUNDS = (0, 1, 4)
FRAGMENTS, EACH = 25, 4
SOLVER = Solver(method="heun", steps=50)
MODEL = CategoricalModelConfig(layers=4, width=64)


def main(data: str, steps: int = 3500, drawn: int = 200) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    clouds = eqflow.read(data)
    clouds = clouds[(clouds.sizes >= SMALLEST) & (clouds.sizes <= SIZE)]
    clouds = clouds[rng.permutation(len(clouds), rng.generator(0, "conditional"))]
    clouds = with_radius(clouds)
    train, validation = clouds[:TRAINED], clouds[TRAINED : TRAINED + HELD_OUT]
    others = clouds[TRAINED + HELD_OUT :]
    asked = others[others.sizes == SIZE].properties[NAME][:drawn]

    started = time.process_time()
    trainer = trained(train, validation, steps)
    found: dict[str, Any] = {
        "training": {
            "structures": len(train),
            "steps": steps,
            "cpu_seconds": round(time.process_time() - started, 1),
            "val_loss": trainer.progress.best_loss,
        },
        "asked": len(asked),
        "standard_deviation_asked": float(asked.std()),
        # What molecules of the data have that know nothing of the radius asked for.
        "without_control": _mean_error(asked[torch.arange(len(asked)).roll(1)], asked),
    }
    flow = trainer.best_flow()
    for guidance in GUIDANCE:
        found[f"guidance {guidance:g}"] = figures(flow, asked, guidance)
        print(guidance, found[f"guidance {guidance:g}"])
    whole = others[others.sizes == SIZE][drawn : drawn + FRAGMENTS]
    for rounds in ROUNDS:
        found[f"rounds {rounds}"] = grown(flow, whole, rounds)
        print(rounds, found[f"rounds {rounds}"])
    write_results("conditional", found)


def with_radius(clouds: Clouds) -> Clouds:
    """The clouds with the root mean square distance of their atoms from the centre, in Å."""
    x = centred(clouds.x.double(), clouds.segments)
    radius = clouds.segments.mean(x.square().sum(1)).sqrt()
    return Clouds(clouds.x, clouds.ptr, clouds.numbers, properties={NAME: radius})


def trained(train: Clouds, validation: Clouds, steps: int) -> Trainer:
    """A run of flow matching with properties dropped now and then."""
    sizes = Sizes.of(train)
    numbers = train.numbers
    statistics = {
        "dimension": 3,
        "scale": spread(train),
        "elements": [] if numbers is None else numbers.unique().tolist(),
        "integer_features": [],
        "sizes": sizes.to_plain(),
        "properties": Properties.of(train, [NAME], sizes.places(train)).to_plain(),
    }
    flow = build_molecular_flow(MODEL, SolverConfig(), statistics, seed=0)
    config = TrainConfig(steps=steps, batch_size=64, validate_every=500)
    objective = PropertyDropout(FlowMatching(EquivariantOT(), 0.2), 2, UNCONDITIONAL)
    trainer = Trainer(flow, objective, train, validation, config, seed=0)
    trainer.run(lambda row: print(row, flush=True), lambda: None, lambda: False)
    return trainer


def figures(flow: AbstractFlow, asked: Tensor, guidance: float) -> dict[str, Any]:
    """Error of the radius of what is drawn, in Å, and how sound the molecules are."""
    started = time.process_time()
    drawn = flow.draw(
        len(asked), sizes=SIZE, properties={NAME: asked}, guidance=guidance, solver=SOLVER
    )
    seconds = time.process_time() - started
    arrived = torch.tensor([status is Status.SUCCESS for status in drawn.status])
    molecules = with_radius(drawn.clouds[arrived.nonzero().squeeze(1)])
    radius = molecules.properties[NAME]
    sound = table_metrics(bonds_of(molecules))["atoms stable"]
    pairs = torch.stack([radius, asked[arrived]])
    return {
        **_mean_error(radius, asked[arrived]),
        "correlation": float(torch.corrcoef(pairs)[0, 1]),
        "atoms_stable": sound.value,
        "failed": int((~arrived).sum()),
        "cpu_seconds": round(seconds, 1),
    }


def grown(flow: AbstractFlow, whole: Clouds, rounds: int) -> dict[str, Any]:
    """How sound molecules are that were grown around the heavy atoms of others."""
    started = time.process_time()
    parts, hydrogens = [], []
    for seed, molecule in enumerate(whole):
        heavy = molecule.h[:, 0] > 1
        fragment = Clouds.from_dense(molecule.x[heavy][None], molecule.h[heavy, 0])
        fixed = Fixed(fragment, times=50, rounds=rounds)
        drawn = flow.draw(EACH, seed=seed, sizes=SIZE, fixed=fixed)
        parts += [drawn.clouds[i] for i in range(EACH) if drawn.status[i] is Status.SUCCESS]
        hydrogens.append((drawn.clouds.h.reshape(EACH, SIZE)[:, len(fragment.x) :] == 1).double())
    sound = table_metrics(bonds_of(Clouds.join(parts)))["atoms stable"]
    return {
        "fragments": len(whole),
        "molecules": len(parts),
        "atoms_stable": sound.value,
        # Of the heavy atoms all are given, so that those grown should be hydrogens.
        "hydrogens_among_grown": float(torch.cat([each.flatten() for each in hydrogens]).mean()),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def _mean_error(found: Tensor, asked: Tensor) -> dict[str, float]:
    error = (found - asked).abs()
    return {
        "mean_absolute_error": float(error.mean()),
        "standard_error": float(error.std() / len(error) ** 0.5),
    }


if __name__ == "__main__":
    path, *options = sys.argv[1:]
    main(path, **{key: int(value) for key, value in (word.split("=") for word in options)})
