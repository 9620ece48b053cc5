"""PoseBusters: whether a molecule passes each of its checks of chemistry and geometry.

The checks of the configuration `mol` need the molecule alone: sanity, connectedness, bond lengths,
angles, clashes, flat rings and double bonds, and an internal energy near that of embedded
conformers. PoseBusters is optional: `pip install eqflow[metrics]`.

Reference: PoseBusters: AI-based docking methods fail to generate physically valid poses or
generalise to novel sequences (Buttenschoen, Morris, Deane, 2024), arXiv:2308.05777.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from eqflow.chem.workers import Worker
from eqflow.errors import UsageError
from eqflow.evaluate.perception import Perceived

# Embedding conformers for the energy is most of the time.
SECONDS = 60.0


def bust(perceived: Sequence[Perceived], seconds: float = SECONDS) -> list[dict[str, bool]]:
    """Which checks each molecule passes, by name; empty where it could not be checked.

    Args:
        perceived: Molecules with bonds, from `perceive`.
        seconds: How long one molecule may take.

    Raises:
        UsageError: If PoseBusters is not installed.
        EqflowError: If the worker cannot be started.
    """
    if find_spec("posebusters") is None:
        raise UsageError(
            "PoseBusters: found no package posebusters. Install it: pip install 'eqflow[metrics]'."
        )
    with Worker(checks, seconds) as worker:
        return [
            (worker(molecule.molfile).value or {}) if molecule.molfile else {}
            for molecule in perceived
        ]


def checks(molfile: str) -> dict[str, bool]:
    """Which checks one molecule passes: what a worker runs."""
    from posebusters import PoseBusters
    from rdkit import Chem

    molecule = Chem.MolFromMolBlock(molfile, removeHs=False)
    report = PoseBusters(config="mol").bust([molecule], None, None)
    return {name: bool(passed) for name, passed in report.iloc[0].items()}
