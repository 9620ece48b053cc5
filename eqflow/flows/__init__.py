"""Continuous normalizing flows: base density, ODE door, divergence, density, objectives."""

from eqflow.flows.abstract import AbstractFlow
from eqflow.flows.actnorm import ActNorm
from eqflow.flows.atom_types import AtomTypes
from eqflow.flows.base import CenteredNormal
from eqflow.flows.bounds import BoundScores, DrawnMolecules
from eqflow.flows.compositions import Compositions
from eqflow.flows.continuous import ContinuousFlow, Transport
from eqflow.flows.couplings import AbstractCoupling, EquivariantOT, Independent, MinibatchOT
from eqflow.flows.density import Flow
from eqflow.flows.dequantisation import (
    AbstractDequantiser,
    ArgmaxDequantiser,
    GaussianDequantiser,
    Labels,
    UniformDequantiser,
    VariationalDequantiser,
)
from eqflow.flows.divergence import Hutchinson, HutchPlusPlus
from eqflow.flows.exact import Exact, ExactForward, ExactReverse
from eqflow.flows.graph_diffusion import Diffused, diffuse
from eqflow.flows.inpainting import Fixed
from eqflow.flows.masked import MaskedMolecularFlow
from eqflow.flows.masked_matching import MaskedMatching
from eqflow.flows.masking import Masking
from eqflow.flows.molecular import MolecularFlow
from eqflow.flows.objectives import AbstractObjective, Batch, FlowMatching, Loss, MaximumLikelihood
from eqflow.flows.ode import Solution, Solver, Status, integrate
from eqflow.flows.properties import Properties
from eqflow.flows.property_dropout import PropertyDropout
from eqflow.flows.results import Drawn, Integrated, Scores
from eqflow.flows.sizes import Sizes
from eqflow.flows.trace import AbstractDivergence
from eqflow.flows.uniformization import propagate
from eqflow.flows.whole_molecules import AbstractMolecularFlow

__all__ = [
    "AbstractCoupling",
    "AbstractDequantiser",
    "AbstractDivergence",
    "AbstractFlow",
    "AbstractMolecularFlow",
    "AbstractObjective",
    "ActNorm",
    "ArgmaxDequantiser",
    "AtomTypes",
    "Batch",
    "BoundScores",
    "CenteredNormal",
    "Compositions",
    "ContinuousFlow",
    "Diffused",
    "Drawn",
    "DrawnMolecules",
    "EquivariantOT",
    "Exact",
    "ExactForward",
    "ExactReverse",
    "Fixed",
    "Flow",
    "FlowMatching",
    "GaussianDequantiser",
    "HutchPlusPlus",
    "Hutchinson",
    "Independent",
    "Integrated",
    "Labels",
    "Loss",
    "MaskedMatching",
    "MaskedMolecularFlow",
    "Masking",
    "MaximumLikelihood",
    "MinibatchOT",
    "MolecularFlow",
    "Properties",
    "PropertyDropout",
    "Scores",
    "Sizes",
    "Solution",
    "Solver",
    "Status",
    "Transport",
    "UniformDequantiser",
    "VariationalDequantiser",
    "diffuse",
    "integrate",
    "propagate",
]
