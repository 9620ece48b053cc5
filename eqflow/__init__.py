"""Equivariant generative flows on one set of edge primitives.

>>> import eqflow
>>> target = eqflow.targets.DW4()
>>> target.degrees_of_freedom
6
"""

from eqflow import targets
from eqflow.data import read
from eqflow.geometry import Clouds
from eqflow.train import load

__version__ = "0.1.0"

__all__ = ["Clouds", "load", "read", "targets"]
