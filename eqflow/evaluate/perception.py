"""Bonds as RDKit perceives them: connectivity by covalent radii, orders and charges that fit.

A molecule is read as a whole for a given total charge, so aromatic rings, nitro groups and
zwitterions come out right. The search for orders that fit may take for ever: it runs in a worker
with a deadline.

Reference: Universal structure conversion method for organic molecules: from atomic connectivity to
three-dimensional geometry (Kim, Kim, 2015), doi:10.1002/bkcs.10334.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eqflow.chem.convert import spatial
from eqflow.chem.elements import LARGEST
from eqflow.chem.workers import Outcome, Worker
from eqflow.errors import ShapeError
from eqflow.evaluate.bonds import atoms_of
from eqflow.geometry import Clouds

if TYPE_CHECKING:
    import rdkit.Chem

SECONDS = 10.0
# A bond may be this much longer than the sum of RDKit's covalent radii; the first that bonds fit.
# RDKit's own 1.3 takes the ends of strained rings for bonded and reads 95 % of QM9; 1.15 reads all
# of 5,000 molecules drawn at random, but neither H₂ nor F₂.
BOND_FACTORS = (1.15, 1.3)


class Perceived(NamedTuple):
    """What RDKit's bond perception says about one molecule.

    Attributes:
        smiles: Canonical SMILES without stereochemistry; None where no bonds fit.
        fragments: How many fragments there are, 0 where no bonds fit.
        molfile: The molecule with bonds and charges; empty where no bonds fit.
        problem: Why there are no bonds; empty where there are.
        refused: Whether RDKit said that none fit; else it could not be asked, or gave no answer.
    """

    smiles: str | None = None
    fragments: int = 0
    molfile: str = ""
    problem: str = ""
    refused: bool = False


def perceive(
    clouds: Clouds, charge: int | Sequence[int] | None = None, seconds: float = SECONDS
) -> list[Perceived]:
    """Perceive the bonds of each molecule.

    Args:
        clouds: Molecules, positions in Å.
        charge: Total charge of each molecule, in units of the elementary charge; where None, the
            sum of the formal charges of its atoms, 0 where these are not known.
        seconds: How long one molecule may take.

    Raises:
        UnknownElement: If the clouds have no elements at all.
        ShapeError: If there are not as many charges as molecules.
        EqflowError: If the worker cannot be started.
    """
    return list(perceive_each(clouds, charge, seconds))


def perceive_each(
    clouds: Clouds,
    charge: int | Sequence[int] | None = None,
    seconds: float = SECONDS,
    worker: Worker | None = None,
) -> Iterator[Perceived]:
    """The same, one after another as they are asked for; arguments are checked at once.

    By a worker of its own, or one of `read_bonds` that serves several calls, with its deadline.
    """
    atoms_of(clouds)
    if charge is None:
        charges = clouds.total_charges.tolist()
    else:
        charges = [charge] * len(clouds) if isinstance(charge, int) else list(charge)
    if len(charges) != len(clouds):
        raise ShapeError(f"perceive: found {len(charges)} charges for {len(clouds)} molecules.")
    jobs = (
        {"numbers": atoms.numbers.tolist(), "positions": atoms.x.tolist(), "charge": int(total)}
        for atoms, total in zip(spatial(clouds), charges, strict=True)
    )
    if worker is not None:
        return (_perceived(worker(job)) for job in jobs)
    return _answers(jobs, seconds)


def _answers(jobs: Iterator[dict[str, Any]], seconds: float) -> Iterator[Perceived]:
    with Worker(read_bonds, seconds) as worker:
        for job in jobs:
            yield _perceived(worker(job))


def read_bonds(job: dict[str, Any]) -> dict[str, Any]:
    """SMILES, fragments and molfile of one molecule: what a worker runs.

    Raises:
        ValueError: If no bonds fit, or only those of a radical.
    """
    import torch
    from rdkit import Chem

    from eqflow.chem.convert import to_rdkit
    from eqflow.evaluate.validity import NOT_JUDGED, smiles_of

    numbers = torch.tensor(job["numbers"], dtype=torch.int64)
    x = torch.tensor(job["positions"], dtype=torch.float64).reshape(-1, 3)
    if not len(x) or not x.isfinite().all() or (numbers < 1).any() or (numbers > LARGEST).any():
        return {"problem": NOT_JUDGED}
    molecule = to_rdkit(Clouds(x, torch.tensor([0, len(x)]), numbers))[0]
    molecule = _bonded(molecule, job["charge"])
    options = Chem.MolWriterParams()
    options.forceV3000 = True
    options.includeStereo = False
    options.precision = 12
    return {
        "smiles": smiles_of(molecule),
        "fragments": len(Chem.GetMolFrags(molecule)),
        "molfile": Chem.MolToMolBlock(molecule, options),
    }


def _bonded(atoms: rdkit.Chem.Mol, charge: int) -> rdkit.Chem.Mol:
    """The atoms with the first bonds that fit."""
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    refusal = ValueError("found no bonds that fit")
    for factor in BOND_FACTORS:
        molecule = Chem.Mol(atoms)
        try:
            rdDetermineBonds.DetermineBonds(
                molecule, charge=charge, useVdw=True, covFactor=factor, embedChiral=False
            )
            Chem.SanitizeMol(molecule)
        except ValueError as error:
            refusal = error
            continue
        if not any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
            return molecule
        refusal = ValueError(f"a total charge of {charge} leaves unpaired electrons")
    raise refusal


def _perceived(outcome: Outcome) -> Perceived:
    if outcome.value is None:
        return Perceived(problem=outcome.problem, refused=outcome.refused)
    return Perceived(**outcome.value)
