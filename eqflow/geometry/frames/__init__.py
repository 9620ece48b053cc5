"""Frames: a few poses of each cloud, chosen so that moving the cloud moves them along.

A function averaged over the poses of an equivariant frame is equivariant, whatever the function
(Puny et al., 2021, arXiv:2110.03336). How poses are chosen decides where that holds and how smooth
the average is:

- `PCAFrame`: principal axes with all signs. Exact where the principal moments differ.
- `OrbitFrame`: as few poses as the symmetry of the cloud allows. Exact on every cloud; jumps where
  a cloud becomes symmetric.
- `WeightedFrame`: poses by all points in turn, weighted. Exact and continuous; many poses.
- `StochasticFrame`: a few poses drawn from one of these. Exact in expectation.
"""

from eqflow.geometry.frames.abstract import AbstractFrame
from eqflow.geometry.frames.orbit import OrbitFrame
from eqflow.geometry.frames.pca import PCAFrame
from eqflow.geometry.frames.poses import Poses
from eqflow.geometry.frames.stochastic import StochasticFrame
from eqflow.geometry.frames.weighted import WeightedFrame

__all__ = [
    "AbstractFrame",
    "OrbitFrame",
    "PCAFrame",
    "Poses",
    "StochasticFrame",
    "WeightedFrame",
]
