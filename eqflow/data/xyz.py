"""The `.xyz` and `.extxyz` formats: a count, a comment, and one line an atom.

In plain XYZ a line is an element and three coordinates in Å, and further columns are ignored. In
extended XYZ the comment names the columns, `Properties=species:S:1:pos:R:3:…`; boxes and columns
not named here are left out. The molecules of the original QM9 release, with their numbers such as
`1.2*^-5` and three lines after the atoms, are read as they are.

Formal charges are a column `formal_charges` (or `formal_charge`) of whole numbers, or else ASE's
`initial_charges`. Partial charges may stand in these: those of a structure are taken where all are
whole. ASE's `charges`, the outcome of a calculation, are no formal charges.

Properties of the structure are in the comment, see `eqflow.data.stated_properties`.

Elements are symbols, or atomic numbers in digits; deuterium `D` and tritium `T` are hydrogen. A
file whose atoms are all `X` has points without elements.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch

from eqflow.chem.convert import known_properties, spatial, whole_charges
from eqflow.chem.elements import LARGEST_CHARGE, atomic_number, symbol
from eqflow.data.records import ADVICE, Collector, ReadResult, accept, require_choice
from eqflow.data.stated_properties import of_comment, to_comment
from eqflow.data.text import Lines, open_lines, shown
from eqflow.errors import DataError, MalformedRecord, UnknownElement
from eqflow.geometry.clouds import Clouds

_COUNT = re.compile(r"\s*([0-9]{1,9})\s*$")
_PROPERTIES = re.compile(r'(?:^|\s)Properties\s*=\s*("[^"]*"|\S+)')


class Columns(NamedTuple):
    """Where the columns of an atom are; `width` is None where further ones may follow."""

    element: int | None
    position: int
    width: int | None
    formal: int | None = None
    initial: int | None = None


class Record(NamedTuple):
    """One structure: atomic numbers (n,), coordinates (3n,), charges (n,), and what is known of it.

    Charges are None where it has none.
    """

    numbers: list[int]
    positions: list[float]
    charges: list[int] | None
    properties: dict[str, float]


PLAIN = Columns(element=0, position=1, width=None)


def read_xyz(path: Path, dimension: int | None = None, on_problem: str = "stop") -> ReadResult:
    """Structures of an `.xyz` or `.extxyz` file, positions in float64.

    Raises:
        MalformedRecord: If a record does not follow the format.
        UnknownElement: If an atom is of no known element.
        DataError: If positions are not finite, absurd or coincident.
        EmptyData: If no structure is left.
    """
    require_choice(on_problem)
    collector = Collector(str(path), line_of_atom)
    with open_lines(path) as lines:
        collect(lines, collector, stop=on_problem == "stop")
    return accept(collector.records(), on_problem, dimension)


def line_of_atom(source: str, atom: int) -> str:
    """`file:line` of an atom of the structure whose record starts at `source`."""
    name, line = source.rsplit(":", 1)
    return f"{name}:{int(line) + 2 + atom}"


def collect(lines: Lines, collector: Collector, stop: bool) -> None:
    """Add all records of a text, or only those before the first bad one where `stop`."""
    while (line := lines.peek()) is not None:
        if not line.strip():
            lines.take(1)
            continue
        start = lines.here
        try:
            record = _record(lines)
        except DataError as error:
            collector.refuse(error)
            if stop:
                return
            continue
        collector.add(record.numbers, record.positions, record.charges, start, record.properties)


def write_xyz(clouds: Clouds, file: IO[bytes], extended: bool) -> None:
    """Write clouds with at most three dimensions; the numbers read back are bitwise the same.

    Formal charges are written as ASE's initial charges, and have no place in plain XYZ; no more
    have properties.
    """
    charged = extended and clouds.charges is not None
    digits = 17 if clouds.x.dtype == torch.float64 else 9
    row = f"%s %.{digits}g %.{digits}g %.{digits}g{' %d' if charged else ''}\n"
    comment = "Properties=species:S:1:pos:R:3" if extended else ""
    comment += ":initial_charges:R:1" if charged else ""
    for (x, numbers, charges), known in zip(spatial(clouds), known_properties(clouds), strict=True):
        columns = [map(symbol, numbers.tolist()), *x.T.tolist()]
        values = zip(*columns, *([charges.tolist()] if charged else []), strict=True)
        atoms = row * len(numbers) % tuple(chain.from_iterable(values))
        stated = f"{comment} {to_comment(known)}".rstrip() if extended else comment
        file.write(f"{len(numbers)}\n{stated}\n{atoms}".encode())


def _record(lines: Lines) -> Record:
    """The next record; past it too where it is bad."""
    start = lines.here
    head = lines.take(1)[0]
    count = _COUNT.match(head)
    if count is None:
        lines.skip_until(_is_count)
        raise MalformedRecord(
            f"{start}: found {shown(head)}, expected the number of atoms of the next structure. "
            + ADVICE
        )
    size = int(count[1])
    first = lines.number
    body = lines.take(size + 1)
    try:
        if size == 0:
            raise MalformedRecord(f"{start}: found 0 atoms, expected at least 1. " + ADVICE)
        if len(body) < size + 1:
            raise MalformedRecord(
                f"{start}: found {max(len(body) - 1, 0)} lines of atoms before the end of the "
                f"file, expected {size}. The file may be cut off. " + ADVICE
            )
        atoms = _atoms(body, lines.name, first)
    except DataError:
        following = lines.peek()
        in_step = following is None or not following.strip() or _is_count(following)
        if len(body) < size + 1 or not in_step:
            lines.give_back(body[1:])
            lines.skip_until(_is_count)
        raise
    if body[0].startswith("gdb") and not _is_count(lines.peek() or "0"):
        lines.take(3)
    return atoms


def _atoms(body: list[str], name: str, first: int) -> Record:
    """What the atoms are; `body` is the comment, at line `first`, and the atoms."""
    stated = _PROPERTIES.search(body[0])
    try:
        columns = _columns(stated[1]) if stated else PLAIN
    except ValueError as error:
        raise MalformedRecord(f"{name}:{first}: {error} {ADVICE}") from error
    rows = [line.split() for line in body[1:]]
    lengths = [len(row) for row in rows]
    fewest, most = columns.width or 4, columns.width or max(lengths)
    if min(lengths) < fewest or max(lengths) > most:
        wrong = next(i for i, length in enumerate(lengths) if not fewest <= length <= most)
        if _is_count(body[1 + wrong]):
            raise MalformedRecord(
                f"{name}:{first - 1}: found {wrong} atoms before the next structure, in line "
                f"{first + 1 + wrong}, expected {len(rows)}. " + ADVICE
            )
        expected = f"{columns.width} as Properties says" if columns.width else "element, x, y, z"
        raise MalformedRecord(
            f"{name}:{first + 1 + wrong}: found {lengths[wrong]} columns in "
            f"{shown(body[1 + wrong])}, expected {expected}. " + ADVICE
        )
    p = columns.position
    texts = [value for row in rows for value in row[p : p + 3]]
    try:
        if not _is_plain("".join(texts)):
            raise ValueError
        positions = [float(value) for value in texts]
    except ValueError:
        positions = _forgiving(rows, p, name, first + 1)
    charges, properties = _charges(rows, columns, name, first + 1), of_comment(body[0])
    if columns.element is None:
        return Record([0] * len(rows), positions, charges, properties)
    e = columns.element
    try:
        return Record([atomic_number(row[e]) for row in rows], positions, charges, properties)
    except UnknownElement:
        for i, row in enumerate(rows):
            try:
                atomic_number(row[e])
            except UnknownElement as error:
                raise UnknownElement(f"{name}:{first + 1 + i}: {error} {ADVICE}") from error
        raise


def _forgiving(rows: list[list[str]], p: int, name: str, first: int) -> list[float]:
    """Coordinates that may be written `1.2*^-5`, as in the original QM9 release."""
    positions = []
    for i, row in enumerate(rows):
        for value in row[p : p + 3]:
            try:
                if not _is_plain(value):
                    raise ValueError
                positions.append(float(value.replace("*^", "e")))
            except ValueError as error:
                raise MalformedRecord(
                    f"{name}:{first + i}: found {shown(value)}, expected a coordinate. " + ADVICE
                ) from error
    return positions


def _charges(rows: list[list[str]], columns: Columns, name: str, first: int) -> list[int] | None:
    """Formal charges of the atoms; a column that says so has to have whole numbers."""
    column = columns.initial if columns.formal is None else columns.formal
    if column is None:
        return None
    try:
        if not _is_plain("".join(row[column] for row in rows)):
            raise ValueError
        values = np.array([float(row[column]) for row in rows])
    except ValueError:
        values = np.full(len(rows), np.nan)
    charges = whole_charges(values)
    if columns.formal is not None and not (charges == values).all():
        for i, row in enumerate(rows):
            if not _is_whole(row[column]):
                raise MalformedRecord(
                    f"{name}:{first + i}: found {shown(row[column])}, expected a formal charge, a "
                    f"whole number from {-LARGEST_CHARGE} to {LARGEST_CHARGE}. " + ADVICE
                )
    return [int(charge) for charge in charges]


def _is_plain(text: str) -> bool:
    """Whether numbers are written as files have them: Python takes `1_000` and other digits too."""
    return text.isascii() and "_" not in text


def _is_whole(text: str) -> bool:
    try:
        return _is_plain(text) and bool(whole_charges(np.array([float(text)]))[0] == float(text))
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _columns(properties: str) -> Columns:
    """The columns of `Properties=name:type:count:…`; a ValueError says what is wrong with it."""
    parts = properties.strip('"').split(":")
    element = number = position = formal = initial = None
    width = 0
    for name, kind, count in zip(parts[0::3], parts[1::3], parts[2::3], strict=False):
        if not (count.isascii() and count.isdigit() and 0 < int(count[:6]) < 10_000):
            raise ValueError(f"found {shown(properties)}, expected Properties=name:type:count:….")
        if name in ("species", "element", "symbols") and kind == "S" and count == "1":
            element = width
        if name in ("Z", "numbers") and kind == "I" and count == "1":
            number = width
        if name in ("pos", "positions") and kind == "R":
            if count != "3":
                raise ValueError(f"found {shown(properties)}, expected 3 coordinates, pos:R:3.")
            position = width
        if name in ("formal_charges", "formal_charge") and kind in ("I", "R") and count == "1":
            formal = width
        if name == "initial_charges" and kind in ("I", "R") and count == "1":
            initial = width
        width += int(count)
    if position is None or len(parts) % 3:
        raise ValueError(
            f"found {shown(properties)}, expected Properties with the columns species:S:1:pos:R:3."
        )
    return Columns(number if element is None else element, position, width, formal, initial)


def _is_count(line: str) -> bool:
    return _COUNT.match(line) is not None
