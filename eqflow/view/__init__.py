"""Pictures of what a flow does: PNG files, drawn without a screen and without global state."""

from eqflow.view.histograms import bonds, distances, energies
from eqflow.view.losses import losses
from eqflow.view.trajectory import trajectory

__all__ = ["bonds", "distances", "energies", "losses", "trajectory"]
