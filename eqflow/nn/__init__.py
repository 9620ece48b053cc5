"""Equivariant layers and velocity fields."""

from eqflow.nn.categorical_field import CategoricalEGNNField
from eqflow.nn.egcl import EGCL
from eqflow.nn.egnn import EGNN
from eqflow.nn.field import AbstractField, EGNNField
from eqflow.nn.guided import GuidedField
from eqflow.nn.joint_field import JointEGNNField
from eqflow.nn.masked_field import AbstractMaskedField, MaskedEGNNField

__all__ = [
    "EGCL",
    "EGNN",
    "AbstractField",
    "AbstractMaskedField",
    "CategoricalEGNNField",
    "EGNNField",
    "GuidedField",
    "JointEGNNField",
    "MaskedEGNNField",
]
