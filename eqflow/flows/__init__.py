"""Continuous normalizing flows: base density, ODE door, divergence, density, objectives."""

from eqflow.flows.base import CenteredNormal
from eqflow.flows.compositions import Compositions
from eqflow.flows.continuous import ContinuousFlow, Transport
from eqflow.flows.couplings import AbstractCoupling, EquivariantOT, Independent, MinibatchOT
from eqflow.flows.density import Flow
from eqflow.flows.divergence import Hutchinson, HutchPlusPlus
from eqflow.flows.exact import Exact, ExactForward, ExactReverse
from eqflow.flows.objectives import AbstractObjective, Batch, FlowMatching, Loss, MaximumLikelihood
from eqflow.flows.ode import Solution, Solver, Status, integrate
from eqflow.flows.results import Drawn, Scores
from eqflow.flows.trace import AbstractDivergence

__all__ = [
    "AbstractCoupling",
    "AbstractDivergence",
    "AbstractObjective",
    "Batch",
    "CenteredNormal",
    "Compositions",
    "ContinuousFlow",
    "Drawn",
    "EquivariantOT",
    "Exact",
    "ExactForward",
    "ExactReverse",
    "Flow",
    "FlowMatching",
    "HutchPlusPlus",
    "Hutchinson",
    "Independent",
    "Loss",
    "MaximumLikelihood",
    "MinibatchOT",
    "Scores",
    "Solution",
    "Solver",
    "Status",
    "Transport",
    "integrate",
]
