"""Pictures of what flows and diffusions do: PNG files, drawn without screen or global state."""

from eqflow.view.diffusion import accuracy_by_depth, along_depth, dominance
from eqflow.view.histograms import bonds, distances, energies
from eqflow.view.losses import losses
from eqflow.view.trajectory import trajectory

__all__ = [
    "accuracy_by_depth",
    "along_depth",
    "bonds",
    "distances",
    "dominance",
    "energies",
    "losses",
    "trajectory",
]
