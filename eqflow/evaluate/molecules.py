"""All metrics of drawn molecules, each beside the same number on held-out data: its ceiling.

A distance of two distributions has as its ceiling, or rather floor, that between two halves of the
held-out data.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from eqflow import rng
from eqflow.evaluate.bond_tables import PUBLISHED, BondTable
from eqflow.evaluate.bonds import Bonds, bonds_of
from eqflow.evaluate.distributions import KINDS_OF_BONDS, UNITS, distribution_distances
from eqflow.evaluate.estimates import Estimate, nothing, rate, typical
from eqflow.evaluate.internal_coordinates import bond_lengths
from eqflow.evaluate.perception import Perceived, perceive
from eqflow.evaluate.poses import bust
from eqflow.evaluate.stability import atom_stability, molecule_stability
from eqflow.evaluate.strain import strain_energies
from eqflow.evaluate.validity import check_molecules, novelty, uniqueness, valid_and_unique
from eqflow.geometry import Clouds


class Compared(NamedTuple):
    """One metric.

    Attributes:
        drawn: Of the drawn molecules.
        held_out: The same of held-out data.
        unit: `%`, where the numbers are fractions of 1; else the unit they are in.
    """

    drawn: Estimate
    held_out: Estimate
    unit: str


def molecule_metrics(
    drawn: Clouds,
    reference: Clouds,
    training_smiles: Collection[str] | None = None,
    *,
    table: BondTable = PUBLISHED,
    charge: int | None = None,
    perceived: bool = True,
    relaxed: int = 1000,
    busted: int = 0,
    seed: int = 0,
) -> dict[str, Compared]:
    """Every metric of drawn molecules, by name.

    Args:
        drawn: Molecules, positions in Å.
        reference: Held-out molecules of the data, as many or more.
        training_smiles: Canonical SMILES of the training set, as `canonical_smiles` makes them;
            novelty is left out where None.
        table: Bond lengths, margins and valences.
        charge: Total charge of each molecule, for the perception of bonds; where None, the sum of
            the formal charges of its atoms, 0 where these are not known.
        perceived: Whether RDKit's perception of bonds is asked; strain and PoseBusters need it.
        relaxed: How many molecules at most are relaxed for their strain.
        busted: How many at most are put through PoseBusters, one to two seconds each.
        seed: Resamples and the halves of the reference are functions of it.

    Raises:
        UnknownElement: If clouds have no elements at all.
        UsageError: If PoseBusters is asked for and not installed.
        EqflowError: If a worker process cannot be started.
    """
    both = [bonds_of(clouds, table) for clouds in (drawn, reference)]
    parts = [[table_metrics(bonds, training_smiles, seed) for bonds in both]]
    if perceived:
        every = perceive(Clouds.join([bonds.clouds for bonds in both]), charge)
        read = [every[: len(drawn)], every[len(drawn) :]]
        parts.append([_by_perception(side, training_smiles, seed) for side in read])
        if relaxed:
            parts.append(_strain([side[:relaxed] for side in read], seed))
        if busted:
            parts.append(_poses([side[:busted] for side in read], seed))
    order = rng.permutation(len(reference), rng.generator(seed, "halves"))
    halves = [bonds_of(reference[half], table) for half in order.tensor_split(2)]
    kinds = list(bond_lengths(both[1]))[:KINDS_OF_BONDS]
    parts.append(
        [
            distribution_distances(both[0], both[1], kinds, seed),
            distribution_distances(halves[0], halves[1], kinds, seed),
        ]
    )
    return {
        name: Compared(of_drawn, part[1].get(name, nothing()), _unit(name))
        for part in parts
        for name, of_drawn in part[0].items()
    }


def metrics_table(metrics: dict[str, Compared]) -> str:
    """The metrics as text, one a line: drawn, held out, and how many could not be computed.

    Where there are distances, a last line says how their intervals are to be read.
    """
    head = ("", "drawn", "held out", "n", "not computable")
    rows = [head] + [
        (
            f"{name} ({metric.unit})",
            _shown(metric.drawn, metric.unit),
            _shown(metric.held_out, metric.unit),
            str(metric.drawn.count),
            f"{metric.drawn.not_computable}, {metric.held_out.not_computable}",
        )
        for name, metric in metrics.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    if any(metric.unit in UNITS.values() for metric in metrics.values()):
        lines.append(
            "Intervals of distances are those of resamples, which are farther apart than the "
            "samples: one within that of the held out is none."
        )
    return "\n".join(lines)


def table_metrics(
    bonds: Bonds, training: Collection[str] | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """What follows from the bonds of the distance tables alone.

    Args:
        bonds: As `bonds_of` gives them.
        training: Canonical SMILES of the training set; no novelty where None.
        seed: Bootstrap intervals are a function of it.
    """
    checked = check_molecules(bonds)
    smiles = [one.smiles for one in checked]

    def passed(values: list[bool]) -> Estimate:
        unknown = torch.tensor([bool(one.problem) for one in checked], dtype=torch.bool)
        return rate(torch.tensor(values).double().masked_fill(unknown, torch.nan), seed)

    return {
        "atoms stable": atom_stability(bonds, seed),
        "molecules stable": molecule_stability(bonds, seed),
        "valid": passed([one.whole for one in checked]),
        "largest fragment valid": passed([one.largest for one in checked]),
        "connected": passed([one.fragments == 1 for one in checked]),
        "unique": uniqueness(smiles, seed),
        "valid and unique": valid_and_unique(smiles, seed),
    } | ({} if training is None else {"novel": novelty(smiles, training, seed)})


def _by_perception(
    read: list[Perceived], training: Collection[str] | None, seed: int
) -> dict[str, Estimate]:
    smiles = [one.smiles for one in read]

    def passed(values: list[bool]) -> Estimate:
        unknown = torch.tensor(
            [one.smiles is None and not one.refused for one in read], dtype=torch.bool
        )
        return rate(torch.tensor(values).double().masked_fill(unknown, torch.nan), seed)

    return {
        "perceived: valid": passed([text is not None for text in smiles]),
        "perceived: valid and connected": passed([one.fragments == 1 for one in read]),
        "perceived: unique": uniqueness(smiles, seed),
        "perceived: valid and unique": valid_and_unique(smiles, seed),
    } | ({} if training is None else {"perceived: novel": novelty(smiles, training, seed)})


def _strain(sides: list[list[Perceived]], seed: int) -> list[dict[str, Estimate]]:
    every = strain_energies([one for side in sides for one in side])
    return [
        {
            "strain, median": typical(energies, seed, lambda rows: rows.median(1).values),
            "strain, mean": typical(energies, seed),
        }
        for energies in every.split([len(side) for side in sides])
    ]


def _poses(sides: list[list[Perceived]], seed: int) -> list[dict[str, Estimate]]:
    reports = bust([one for side in sides for one in side])
    passed = [float(all(report.values())) if report else torch.nan for report in reports]
    every = torch.tensor(passed).split([len(side) for side in sides])
    return [{"PoseBusters": rate(each, seed)} for each in every]


def _shown(estimate: Estimate, unit: str) -> str:
    scale, digits = (100, ".1f") if unit == "%" else (1, ".3g")
    value, low, high = (format(scale * number, digits) for number in estimate[:3])
    return f"{value} [{low}, {high}]"


def _unit(name: str) -> str:
    """By the first word; `%` for what is passed or failed."""
    return (UNITS | {"strain": "kcal/mol"}).get(name.split(" ")[0].rstrip(","), "%")
