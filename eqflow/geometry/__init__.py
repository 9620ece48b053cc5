"""Pure functions of tensors: clouds, centring, rotations, alignment."""

from eqflow.geometry.alignment import align, best_permutation
from eqflow.geometry.centring import (
    centre_of_mass,
    centred,
    degrees_of_freedom,
    require_centred,
    split_state,
)
from eqflow.geometry.clouds import Clouds
from eqflow.geometry.rotations import kabsch, random_orthogonal, rotate
from eqflow.geometry.segments import Segments

__all__ = [
    "Clouds",
    "Segments",
    "align",
    "best_permutation",
    "centre_of_mass",
    "centred",
    "degrees_of_freedom",
    "kabsch",
    "random_orthogonal",
    "require_centred",
    "rotate",
    "split_state",
]
