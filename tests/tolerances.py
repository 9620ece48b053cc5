"""The one table of tolerances: how far two ways to compute one number may differ, relatively."""

from eqflow.testing import TOLERANCE

__all__ = ["TOLERANCE"]
