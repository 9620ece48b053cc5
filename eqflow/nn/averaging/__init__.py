"""Symmetry by averaging: any network made invariant or equivariant, over a group or a frame."""

from eqflow.nn.averaging.frame_average import FrameAverage
from eqflow.nn.averaging.group_average import GroupAverage
from eqflow.nn.averaging.groups import FiniteGroup, generated, matrix_group, permutation_group
from eqflow.nn.averaging.haar import Estimate, HaarAverage
from eqflow.nn.averaging.images import ImageGroupAverage
from eqflow.nn.averaging.named_groups import finite_group
from eqflow.nn.averaging.ordered import OrderedPoints

__all__ = [
    "Estimate",
    "FiniteGroup",
    "FrameAverage",
    "GroupAverage",
    "HaarAverage",
    "ImageGroupAverage",
    "OrderedPoints",
    "finite_group",
    "generated",
    "matrix_group",
    "permutation_group",
]
