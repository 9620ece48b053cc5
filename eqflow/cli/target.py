"""`target=package.module:function`: a function of another project, imported by its name.

It is the user's own code, named by the user, that is imported: nothing else may be named here, and
nothing that comes out of a file is.
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eqflow.cli.words import nearest
from eqflow.errors import UsageError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@contextmanager
def importable_from_here() -> Iterator[None]:
    """Modules of the working folder can be imported, as `python -m` lets them be."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def target_of(name: str) -> Callable[..., Any]:
    """The function, or the module of torch, that `package.module:name` names.

    Raises:
        UsageError: If it is no such name, there is no such module or no such name in it, importing
            it fails, or it is nothing that can be called with `x, ptr, h`.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"target: found {name!r}, expected package.module:function, such as "
            "target=my_project.models:velocity."
        )
    module, _, attribute = name.partition(":")
    try:
        found = pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        missing = str(error.name or "")
        if not f"{module}.".startswith(f"{missing}."):
            raise _failing(module, error) from error
        raise UsageError(
            f"target: there is no module {missing!r}; expected one that can be imported here: "
            f"installed, in PYTHONPATH, or below {os.getcwd()}."
        ) from error
    except AttributeError as error:
        if module not in sys.modules:
            raise _failing(module, error) from error
        known = [each for each in vars(sys.modules[module]) if not each.startswith("_")]
        raise UsageError(
            f"target: {module} has no {attribute!r}; {nearest(attribute, known)}"
        ) from error
    except Exception as error:  # whatever the module does when it is imported
        raise _failing(module, error) from error
    if isinstance(found, type) or not callable(found):
        kind = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise UsageError(
            f"target: {name} is {kind}, expected a function fn(x, ptr, h) or a module that was "
            "made: name an instance."
        )
    return found


def _failing(module: str, error: Exception) -> UsageError:
    return UsageError(
        f"target: importing {module} raised {type(error).__name__}: {error}. "
        f"Try python -c 'import {module}'."
    )
