"""Diffusion on graphs: one right-hand side, and the models that are ways to fill it."""

from eqflow.nn.diffusion.attention import Attention
from eqflow.nn.diffusion.blend import BLEND, PositionAndFeature
from eqflow.nn.diffusion.diffusivity import (
    AbstractDiffusivity,
    Additive,
    Cosine,
    Distance,
    Exponential,
    GaussianMixture,
    Pearson,
    ScaledDot,
    diffusivity_by_name,
)
from eqflow.nn.diffusion.gde import GDE
from eqflow.nn.diffusion.graff import GRAFF
from eqflow.nn.diffusion.grand import GRAND
from eqflow.nn.diffusion.hyperbolic import squared_hyperbolic_distance
from eqflow.nn.diffusion.onsager import MessagePassing, Onsager
from eqflow.nn.diffusion.operator import AbstractDiffusion, Coefficients
from eqflow.nn.diffusion.symmetric_matrices import SymmetricMatrix
from eqflow.nn.diffusion.table import (
    AttentionLayer,
    FixedDiffusion,
    cgnn,
    chebnet,
    deepset,
    dgcnn,
    digl,
    gat,
    monet,
    transformer,
)

__all__ = [
    "BLEND",
    "GDE",
    "GRAFF",
    "GRAND",
    "AbstractDiffusion",
    "AbstractDiffusivity",
    "Additive",
    "Attention",
    "AttentionLayer",
    "Coefficients",
    "Cosine",
    "Distance",
    "Exponential",
    "FixedDiffusion",
    "GaussianMixture",
    "MessagePassing",
    "Onsager",
    "Pearson",
    "PositionAndFeature",
    "ScaledDot",
    "SymmetricMatrix",
    "cgnn",
    "chebnet",
    "deepset",
    "dgcnn",
    "diffusivity_by_name",
    "digl",
    "gat",
    "monet",
    "squared_hyperbolic_distance",
    "transformer",
]
