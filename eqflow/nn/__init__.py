"""Equivariant layers and velocity fields."""

from eqflow.nn.averaging import (
    FrameAverage,
    GroupAverage,
    HaarAverage,
    ImageGroupAverage,
    OrderedPoints,
)
from eqflow.nn.categorical_field import CategoricalEGNNField
from eqflow.nn.diffusion import BLEND, GRAFF, GRAND, AbstractDiffusion, Coefficients, Onsager
from eqflow.nn.egcl import EGCL
from eqflow.nn.egnn import EGNN
from eqflow.nn.energies import (
    degree_scaled_dirichlet_energy,
    dirichlet_energy,
    mean_average_distance,
    node_dirichlet_energies,
    normalised_dirichlet_energy,
)
from eqflow.nn.entropy import (
    Entropic,
    EntropyAscent,
    entropy,
    entropy_gradient,
    node_entropic_energies,
)
from eqflow.nn.field import AbstractField, EGNNField
from eqflow.nn.frame_field import FrameField
from eqflow.nn.frequency import (
    FrequencyDominance,
    frequency_dominance,
    laplacian_spectrum,
    largest_laplacian_eigenvalue,
)
from eqflow.nn.gradient_gating import GradientGating, gating_rates
from eqflow.nn.graph_convolution import (
    GraphConvolution,
    ResidualGraphConvolution,
    random_walk_weights,
    symmetric_weights,
    with_self_loops,
)
from eqflow.nn.guided import GuidedField
from eqflow.nn.irreps_field import IrrepsField
from eqflow.nn.joint_field import JointEGNNField
from eqflow.nn.masked_field import AbstractMaskedField, MaskedEGNNField
from eqflow.nn.pair_norm import PairNorm, PairNormIndividually, PairNormThenCentre

__all__ = [
    "BLEND",
    "EGCL",
    "EGNN",
    "GRAFF",
    "GRAND",
    "AbstractDiffusion",
    "AbstractField",
    "AbstractMaskedField",
    "CategoricalEGNNField",
    "Coefficients",
    "EGNNField",
    "Entropic",
    "EntropyAscent",
    "FrameAverage",
    "FrameField",
    "FrequencyDominance",
    "GradientGating",
    "GraphConvolution",
    "GroupAverage",
    "GuidedField",
    "HaarAverage",
    "ImageGroupAverage",
    "IrrepsField",
    "JointEGNNField",
    "MaskedEGNNField",
    "Onsager",
    "OrderedPoints",
    "PairNorm",
    "PairNormIndividually",
    "PairNormThenCentre",
    "ResidualGraphConvolution",
    "degree_scaled_dirichlet_energy",
    "dirichlet_energy",
    "entropy",
    "entropy_gradient",
    "frequency_dominance",
    "gating_rates",
    "laplacian_spectrum",
    "largest_laplacian_eigenvalue",
    "mean_average_distance",
    "node_dirichlet_energies",
    "node_entropic_energies",
    "normalised_dirichlet_energy",
    "random_walk_weights",
    "symmetric_weights",
    "with_self_loops",
]
