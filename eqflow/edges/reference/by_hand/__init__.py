"""The wide part of a message pass with derivatives written by hand."""

from eqflow.edges.reference.by_hand.dual import dual_edge_mlp
from eqflow.edges.reference.by_hand.value import edge_mlp

__all__ = ["dual_edge_mlp", "edge_mlp"]
