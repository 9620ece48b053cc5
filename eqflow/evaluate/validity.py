"""Validity: whether RDKit accepts the bonds of a molecule; which molecules are the same, or new.

Bonds are those of `bonds`, every atom is there and no hydrogen is added, so an atom short of bonds
is a radical. Formal charges, where they are known, do not count: the published figures have none.
RDKit refuses too high a valence and rings it cannot give double bonds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from eqflow.evaluate.bonds import Bonds
from eqflow.evaluate.estimates import Estimate, nothing, ratio

if TYPE_CHECKING:
    import rdkit.Chem


NOT_JUDGED = "no atoms, an unknown element, or positions that are not finite"


class Checked(NamedTuple):
    """What RDKit says about one molecule.

    Attributes:
        whole: Whether it accepts the molecule.
        largest: Whether it accepts the fragment with the most atoms.
        fragments: How many fragments there are; 0 where the molecule could not be judged.
        smiles: Canonical SMILES without stereochemistry, of a molecule that is accepted.
        problem: Why it could not be judged; empty where it was.
    """

    whole: bool = False
    largest: bool = False
    fragments: int = 0
    smiles: str | None = None
    problem: str = ""


def check_molecules(bonds: Bonds) -> list[Checked]:
    """RDKit's word on each molecule, with the bonds it is given and no charges."""
    from rdkit import rdBase

    neutral = replace(bonds, clouds=replace(bonds.clouds, charges=None))
    with rdBase.BlockLogs():
        return [
            _checked(molecule) if judged else Checked(problem=NOT_JUDGED)
            for molecule, judged in zip(neutral.to_rdkit(), bonds.judged.tolist(), strict=True)
        ]


def smiles_of(molecule: rdkit.Chem.Mol) -> str:
    """Canonical SMILES without stereochemistry; hydrogens within the atoms they are bonded to."""
    from rdkit import Chem

    return Chem.MolToSmiles(Chem.RemoveHs(molecule), isomericSmiles=False)


def canonical_smiles(texts: Iterable[str]) -> tuple[set[str], int]:
    """SMILES as RDKit writes those of drawn molecules, and how many of the texts are none to it.

    >>> found, refused = canonical_smiles(["OCC", "CCO", "C1CC", "C[C@H](O)F"])
    >>> sorted(found), refused
    (['CC(O)F', 'CCO'], 1)
    """
    from rdkit import Chem, rdBase

    found, refused = set(), 0
    with rdBase.BlockLogs():
        for text in texts:
            molecule = Chem.MolFromSmiles(text)
            if molecule is None:
                refused += 1
            else:
                found.add(smiles_of(molecule))
    return found, refused


def uniqueness(smiles: Sequence[str | None], seed: int = 0) -> Estimate:
    """Distinct SMILES over molecules that have one.

    A molecule that occurs m times counts 1/m. These shares are drawn again for the interval: the
    repetitions of drawing with replacement are none of the model's.

    Args:
        smiles: Of each molecule; None where it has none, which is counted as not computable.
        seed: The resamples are a function of it.
    """
    present = [text for text in smiles if text is not None]
    if not present:
        return nothing(len(smiles))
    shares = _shares(present)
    return ratio(shares, torch.ones_like(shares), seed, len(smiles) - len(present))


def novelty(smiles: Sequence[str | None], training: Collection[str], seed: int = 0) -> Estimate:
    """Fraction of the distinct SMILES that are not among those of the training set.

    Args:
        smiles: Of each molecule; None where it has none, which is counted as not computable.
        training: Canonical SMILES, as `canonical_smiles` makes them; best a set.
        seed: The resamples are a function of it.
    """
    present = [text for text in smiles if text is not None]
    if not present:
        return nothing(len(smiles))
    shares = _shares(present)
    new = torch.tensor([text not in training for text in present], dtype=torch.float64)
    return ratio(shares * new, shares, seed, len(smiles) - len(present))


def valid_and_unique(smiles: Sequence[str | None], seed: int = 0) -> Estimate:
    """Distinct SMILES over all molecules: the published `valid × unique`."""
    counts = Counter(smiles)
    shares = [0.0 if text is None else 1 / counts[text] for text in smiles]
    passed = torch.tensor(shares, dtype=torch.float64)
    return ratio(passed, torch.ones_like(passed), seed)


def _shares(present: Sequence[str]) -> Tensor:
    counts = Counter(present)
    return torch.tensor([1 / counts[text] for text in present], dtype=torch.float64)


def _checked(molecule: rdkit.Chem.Mol) -> Checked:
    from rdkit import Chem

    parts = Chem.GetMolFrags(molecule, asMols=True, sanitizeFrags=False)
    largest = max(parts, key=lambda part: part.GetNumAtoms())
    try:
        whole = _accepts(molecule)
        one = whole or (len(parts) > 1 and _accepts(largest))
        return Checked(whole, one, len(parts), smiles_of(molecule) if whole else None)
    except (RuntimeError, ValueError) as error:
        return Checked(problem=f"{type(error).__name__}: {str(error).strip()[:80]}")


def _accepts(molecule: rdkit.Chem.Mol) -> bool:
    from rdkit import Chem

    try:
        Chem.SanitizeMol(molecule)
    except ValueError:
        return False
    return True
