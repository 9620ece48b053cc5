"""All kernels, each with everything it is compiled for."""

from __future__ import annotations

import re

from eqflow.edges.kernels import message_cases, primitive_cases
from eqflow.edges.kernels.aot import Case


def all_cases(pattern: str = "") -> list[Case]:
    """The cases in whose names the regular expression is found."""
    cases = (*primitive_cases.aot_cases(), *message_cases.aot_cases())
    return [Case(*case) for case in cases if re.search(pattern, case[0])]
