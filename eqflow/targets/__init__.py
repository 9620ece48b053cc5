"""Energies with known answers: what a model can be measured against, and exact samples of it."""

from eqflow.targets.ase_target import ASETarget
from eqflow.targets.base import AbstractTarget, Thermodynamics
from eqflow.targets.dw4 import DW4
from eqflow.targets.free_energy import Estimate
from eqflow.targets.lennard_jones import LennardJones
from eqflow.targets.mixture import GaussianMixture
from eqflow.targets.names import target_by_name
from eqflow.targets.tempering import Tempered, Tempering

__all__ = [
    "DW4",
    "ASETarget",
    "AbstractTarget",
    "Estimate",
    "GaussianMixture",
    "LennardJones",
    "Tempered",
    "Tempering",
    "Thermodynamics",
    "target_by_name",
]
