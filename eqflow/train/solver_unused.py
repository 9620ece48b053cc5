"""Keys of a solver that have no effect with its method.

A method that chooses its own steps is told how near to come, `solver.rtol` and `solver.atol`; one
of fixed steps is told how many, `solver.steps`. A number given to the other kind changes nothing,
and who typed it believes that it does.
"""

from __future__ import annotations

from eqflow.flows.diffusion_arguments import EXACT
from eqflow.flows.solver import ADAPTIVE, DIFFUSION, FIXED, STIFF


def without_effect(
    method: str, *, is_linear: bool = False, is_revealing: bool = False
) -> dict[str, str]:
    """Why a key has no effect, by its name; nothing of a method that there is not.

    Args:
        method: `solver.method`.
        is_linear: Whether it is a linear diffusion that is solved, in closed form by some methods.
        is_revealing: Whether `solver.steps` counts stretches after which elements are revealed,
            whatever the method (`eqflow.flows.MaskedMolecularFlow`).
    """
    found: dict[str, str] = {}
    if method in (*ADAPTIVE, *STIFF) and not is_revealing:
        found["solver.steps"] = (
            f"found with solver.method={method}, which chooses its own steps by solver.rtol and "
            f"solver.atol. Set solver.method={' or '.join(FIXED)} for a number of steps, or leave "
            "it out."
        )
    if method in EXACT and is_linear:
        found["solver.steps"] = (
            f"found with solver.method={method}, which is exact here, without steps. Leave it out."
        )
    if method in FIXED:
        for key in ("solver.rtol", "solver.atol"):
            found[key] = (
                f"found with solver.method={method}, whose steps are fixed: solver.steps says how "
                f"many. Set solver.method={' or '.join(ADAPTIVE)} for a tolerance, or leave it out."
            )
    if method in DIFFUSION:
        found["solver.atol"] = (
            f"found with solver.method={method}, whose one tolerance is solver.rtol. Leave it out."
        )
    return found
