"""Public assertions and reports of symmetry, and the clouds to try them on.

A function of a cloud is *equivariant* under a group where moving the cloud and then applying the
function is applying the function and then moving its output: `f(g x) = ρ(g) f(x)`. How the output
moves, `ρ`, is part of the claim: an invariant does not, a vector rotates, a point also translates.

>>> from eqflow.geometry import centred
>>> for name, batch in clouds():
...     assert_equivariant(lambda x, ptr, h: centred(x, ptr), batch, group="E(3)", output="vector")

All of it in one line, a table that names the worst cloud:

>>> report = symmetry_report(lambda x, ptr, h: centred(x, ptr), groups="E(3)×S(n)")
>>> report.holds, report.worst.tolerance
(True, 1e-10)
"""

from eqflow.testing.continuity import Continuity, assert_continuous, continuity
from eqflow.testing.equivariance import (
    Discrepancy,
    assert_equivariant,
    assert_invariant,
    discrepancies,
    equivariance_error,
)
from eqflow.testing.independence import assert_independent, independence_error
from eqflow.testing.mirror import Chirality, chirality
from eqflow.testing.motions import Motion, random_motions
from eqflow.testing.report import Row, SymmetryReport
from eqflow.testing.scaling import Scaling, scaling
from eqflow.testing.shapes import clouds
from eqflow.testing.symmetry import symmetry_report
from eqflow.testing.tolerances import TOLERANCE

__all__ = [
    "TOLERANCE",
    "Chirality",
    "Continuity",
    "Discrepancy",
    "Motion",
    "Row",
    "Scaling",
    "SymmetryReport",
    "assert_continuous",
    "assert_equivariant",
    "assert_independent",
    "assert_invariant",
    "chirality",
    "clouds",
    "continuity",
    "discrepancies",
    "equivariance_error",
    "independence_error",
    "random_motions",
    "scaling",
    "symmetry_report",
]
