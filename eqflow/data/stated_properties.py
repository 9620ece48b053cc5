"""Properties of whole structures as files state them: single numbers under a name.

| where | how |
|---|---|
| extended XYZ | `name=1.5` in the comment, `"long name"=1.5` where a name has blanks |
| QM9's own XYZ | the numbers of its comment, under the names that its authors gave them |
| SDF | a data field whose value is one number |
| `.npz` | an array (B,) of numbers |

Whatever is no single number is left out, and so is a name that means something else in one of the
formats or cannot stand in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from eqflow.geometry.clouds import Clouds

# Arrays of `.npz` that are the structures, and what extended XYZ says of them.
RESERVED = {"x", "ptr", "numbers", "formal_charges", "num_atoms", "charges", "positions", "index"}
RESERVED |= {"file", "properties", "lattice", "pbc"}
# In the order of the QM9 release: GHz (3), D, a₀³, Ha (3), a₀², Ha (5), cal/(mol K).
QM9 = ["A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve"]
QM9 += ["U0", "U", "H", "G", "Cv"]

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:(?:[eE]|\*\^)[-+]?[0-9]+)?")
_PAIR = re.compile(r'(?:^|\s)("[^"]*"|[^\s="]+)\s*=\s*("[^"]*"|\S+)')
_FIELD = re.compile(r">.*?<([^<>]+)>")
_WRITABLE = re.compile(r'[^"<>=\s]+(?: [^"<>=\s]+)*')


def of_comment(comment: str) -> dict[str, float]:
    """The properties in the comment of an XYZ record.

    >>> of_comment('Properties=species:S:1:pos:R:3 gap=0.25 "zero point"=1e-2 pbc="F F F"')
    {'gap': 0.25, 'zero point': 0.01}
    """
    if comment.startswith("gdb"):
        words = comment.split()[2:]
        return _numbers(zip(QM9, words, strict=True)) if len(words) == len(QM9) else {}
    if "=" not in comment:
        return {}
    return _numbers((name.strip('"'), text.strip('"')) for name, text in _PAIR.findall(comment))


def to_comment(properties: Mapping[str, float]) -> str:
    """What `of_comment` reads back bit by bit."""
    names = {name: f'"{name}"' if " " in name else name for name in properties}
    return " ".join(f"{names[name]}={value!r}" for name, value in properties.items())


def of_fields(block: Sequence[str]) -> dict[str, float]:
    """The properties among the data fields of an SDF record.

    >>> of_fields(["M  END", "> <gap>", "0.25", "", ">  <3>  (7)", "two", "lines", "", "$$$$"])
    {'gap': 0.25}
    """
    lines = [line.strip() for line in block]
    start = lines.index("M  END") if "M  END" in lines else len(lines)
    found = []
    for place in range(start, len(lines) - 2):
        named = _FIELD.match(lines[place])
        if named and not lines[place + 2].strip("$"):
            found.append((named[1], lines[place + 1]))
    return _numbers(found)


def of_arrays(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The properties of `count` structures among the arrays of a file."""
    return {
        name: values.astype(np.float64)
        for name, values in arrays.items()
        if values.shape == (count,) and values.dtype.kind in "fiu" and is_free(name)
    }


def columns(each: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Properties of structures one by one as those of all, NaN where one is not known."""
    names = dict.fromkeys(name for properties in each for name in properties)
    return {name: np.array([properties.get(name, np.nan) for properties in each]) for name in names}


def is_free(name: str) -> bool:
    """Whether a name means nothing else in any format."""
    return name.lower() not in RESERVED


def writable(clouds: Clouds) -> Clouds:
    """The clouds with those properties alone whose names a file can hold."""
    kept = {
        name: values
        for name, values in clouds.properties.items()
        if is_free(name) and _WRITABLE.fullmatch(name)
    }
    return replace(clouds, properties=kept)


def _numbers(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    return {
        name: float(text.replace("*^", "e"))
        for name, text in pairs
        if is_free(name) and _NUMBER.fullmatch(text)
    }
