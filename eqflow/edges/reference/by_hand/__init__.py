"""What is as large as edges times features, a block at a time, with derivatives by hand."""

from eqflow.edges.reference.by_hand.attention import attention_diffusion
from eqflow.edges.reference.by_hand.dual import dual_edge_mlp
from eqflow.edges.reference.by_hand.value import edge_mlp

__all__ = ["attention_diffusion", "dual_edge_mlp", "edge_mlp"]
