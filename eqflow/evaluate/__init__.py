"""Metrics: one concept a module, pure functions."""

from eqflow.evaluate.bond_tables import PUBLISHED, BondTable
from eqflow.evaluate.bonded import with_bonds
from eqflow.evaluate.bonds import Bonds, bonds_of
from eqflow.evaluate.distributions import distribution_distances
from eqflow.evaluate.estimates import Estimate
from eqflow.evaluate.likelihood import (
    Mean,
    effective_sample_size,
    kl_to_target,
    mean_of,
    negative_log_likelihood,
)
from eqflow.evaluate.molecules import Compared, metrics_table, molecule_metrics, table_metrics
from eqflow.evaluate.perception import Perceived, perceive
from eqflow.evaluate.poses import bust
from eqflow.evaluate.stability import (
    atom_stability,
    molecule_stability,
    stable_atoms,
    stable_molecules,
)
from eqflow.evaluate.strain import strain_energies
from eqflow.evaluate.validity import (
    Checked,
    canonical_smiles,
    check_molecules,
    novelty,
    uniqueness,
    valid_and_unique,
)

__all__ = [
    "PUBLISHED",
    "BondTable",
    "Bonds",
    "Checked",
    "Compared",
    "Estimate",
    "Mean",
    "Perceived",
    "atom_stability",
    "bonds_of",
    "bust",
    "canonical_smiles",
    "check_molecules",
    "distribution_distances",
    "effective_sample_size",
    "kl_to_target",
    "mean_of",
    "metrics_table",
    "molecule_metrics",
    "molecule_stability",
    "negative_log_likelihood",
    "novelty",
    "perceive",
    "stable_atoms",
    "stable_molecules",
    "strain_energies",
    "table_metrics",
    "uniqueness",
    "valid_and_unique",
    "with_bonds",
]
