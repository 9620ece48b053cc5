"""Public assertions of symmetry, and the clouds to try them on.

A function of a cloud is *equivariant* under a group where moving the cloud and then applying the
function is applying the function and then moving its output: `f(g x) = ρ(g) f(x)`. How the output
moves, `ρ`, is part of the claim: an invariant does not, a vector rotates, a point also translates.

>>> from eqflow.geometry import centred
>>> for name, batch in clouds():
...     assert_equivariant(lambda x, ptr, h: centred(x, ptr), batch, group="E(3)", output="vector")
"""

from eqflow.testing.equivariance import (
    Discrepancy,
    assert_equivariant,
    assert_invariant,
    discrepancies,
    equivariance_error,
)
from eqflow.testing.independence import assert_independent, independence_error
from eqflow.testing.motions import Motion, random_motions
from eqflow.testing.shapes import clouds
from eqflow.testing.tolerances import TOLERANCE

__all__ = [
    "TOLERANCE",
    "Discrepancy",
    "Motion",
    "assert_equivariant",
    "assert_independent",
    "assert_invariant",
    "clouds",
    "discrepancies",
    "equivariance_error",
    "independence_error",
    "random_motions",
]
