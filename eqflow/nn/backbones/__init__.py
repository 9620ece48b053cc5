"""Plain networks on clouds, without symmetry of space: what averaging makes equivariant."""

from eqflow.nn.backbones.abstract import AbstractBackbone
from eqflow.nn.backbones.dgcnn import DGCNNBackbone
from eqflow.nn.backbones.mlp import FlatMLPBackbone
from eqflow.nn.backbones.pointnet import PointNetBackbone
from eqflow.nn.backbones.transformer import TransformerBackbone

__all__ = [
    "AbstractBackbone",
    "DGCNNBackbone",
    "FlatMLPBackbone",
    "PointNetBackbone",
    "TransformerBackbone",
]
