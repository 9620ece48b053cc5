"""Continuous normalizing flows: base density, ODE door, divergence, density, objectives."""

from eqflow.flows.abstract import AbstractFlow
from eqflow.flows.actnorm import ActNorm
from eqflow.flows.base import CenteredNormal
from eqflow.flows.bounds import BoundScores, DrawnMolecules
from eqflow.flows.compositions import Compositions
from eqflow.flows.continuous import ContinuousFlow, Transport
from eqflow.flows.couplings import AbstractCoupling, EquivariantOT, Independent, MinibatchOT
from eqflow.flows.density import Flow
from eqflow.flows.dequantisation import (
    AbstractDequantiser,
    ArgmaxDequantiser,
    Labels,
    UniformDequantiser,
    VariationalDequantiser,
)
from eqflow.flows.divergence import Hutchinson, HutchPlusPlus
from eqflow.flows.exact import Exact, ExactForward, ExactReverse
from eqflow.flows.molecular import MolecularFlow
from eqflow.flows.objectives import AbstractObjective, Batch, FlowMatching, Loss, MaximumLikelihood
from eqflow.flows.ode import Solution, Solver, Status, integrate
from eqflow.flows.results import Drawn, Scores
from eqflow.flows.sizes import Sizes
from eqflow.flows.trace import AbstractDivergence

__all__ = [
    "AbstractCoupling",
    "AbstractDequantiser",
    "AbstractDivergence",
    "AbstractFlow",
    "AbstractObjective",
    "ActNorm",
    "ArgmaxDequantiser",
    "Batch",
    "BoundScores",
    "CenteredNormal",
    "Compositions",
    "ContinuousFlow",
    "Drawn",
    "DrawnMolecules",
    "EquivariantOT",
    "Exact",
    "ExactForward",
    "ExactReverse",
    "Flow",
    "FlowMatching",
    "HutchPlusPlus",
    "Hutchinson",
    "Independent",
    "Labels",
    "Loss",
    "MaximumLikelihood",
    "MinibatchOT",
    "MolecularFlow",
    "Scores",
    "Sizes",
    "Solution",
    "Solver",
    "Status",
    "Transport",
    "UniformDequantiser",
    "VariationalDequantiser",
    "integrate",
]
