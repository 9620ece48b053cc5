"""Equivariant layers and velocity fields."""

from eqflow.nn.egcl import EGCL
from eqflow.nn.egnn import EGNN
from eqflow.nn.field import AbstractField, EGNNField
from eqflow.nn.joint_field import JointEGNNField

__all__ = ["EGCL", "EGNN", "AbstractField", "EGNNField", "JointEGNNField"]
