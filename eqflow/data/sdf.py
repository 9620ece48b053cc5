"""The `.sdf` format: molfiles, V2000 or V3000, each ended by a line `$$$$`.

RDKit reads each record as it is: no atom is added or removed and no chemistry is checked. Bonds and
data fields are left out. A record marked `2D` whose z are all 0 is a drawing, not a structure, and
refused unless two dimensions are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eqflow.chem.elements import atomic_number
from eqflow.chem.molfile import molfiles, read_molfile
from eqflow.data.records import ADVICE, Collector, ReadResult, accept, require_choice
from eqflow.data.text import Lines, open_lines, shown
from eqflow.errors import DataError, MalformedRecord, UnknownElement
from eqflow.geometry.clouds import Clouds

END = "$$$$"
COUNTS = 3  # The counts line is the fourth of a molfile.
NUMBER = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*")


def read_sdf(path: Path, dimension: int | None = None, on_problem: str = "stop") -> ReadResult:
    """Structures of an `.sdf` file, positions in float64.

    Raises:
        MalformedRecord: If a record does not follow the format.
        UnknownElement: If an atom is of no known element.
        DataError: If positions are not finite, absurd or coincident.
        EmptyData: If no structure is left.
    """
    require_choice(on_problem)
    collector = Collector(str(path), "{}: atom {}".format)
    with open_lines(path) as lines:
        while (block := _block(lines)) is not None:
            start = f"{path}:{lines.number - len(block)}"
            try:
                numbers, positions = _structure(block, str(path), lines.number - len(block))
                if _is_drawing(block, positions) and dimension != 2:
                    raise MalformedRecord(
                        f"{start}: found a 2-D drawing, expected 3-D positions. Embed the molecule "
                        "first, or read it with dimension=2. " + ADVICE
                    )
            except DataError as error:
                collector.refuse(error)
                if on_problem == "stop":
                    break
                continue
            collector.add(numbers, positions, start)
    return accept(collector.records(), on_problem, dimension)


def write_sdf(clouds: Clouds, file: IO[bytes]) -> None:
    """Write clouds with at most three dimensions, without bonds."""
    for molfile in molfiles(clouds):
        file.write(f"{molfile}{END}\n".encode())


def _block(lines: Lines) -> list[str] | None:
    """The lines of the next record with its end, or None where only blank lines are left."""
    block: list[str] = []
    while taken := lines.take(1):
        block += taken
        if taken[0].startswith(END):
            return block
    return block if any(line.strip() for line in block) else None


def _structure(block: list[str], name: str, first: int) -> tuple[list[int], list[float]]:
    for offset, coordinates in _coordinates(block):
        if not all(map(NUMBER.fullmatch, coordinates)):
            raise MalformedRecord(
                f"{name}:{first + offset}: found {shown(block[offset])}, expected an atom with the "
                "numbers x, y, z. " + ADVICE
            )
    text = "".join(line.rstrip("\r\n") + "\n" for line in block if not line.startswith(END))
    read = read_molfile(text)
    if read is None:
        raise _diagnosis(block, name, first)
    numbers, positions = read
    if not numbers:
        raise MalformedRecord(f"{name}:{first}: found 0 atoms, expected at least 1. " + ADVICE)
    return numbers, positions.ravel().tolist()


def _coordinates(block: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The texts of x, y, z of each atom and its line in the block.

    RDKit takes `0,7` for 0 without a word, so they are checked before it sees them.
    """
    counts = block[COUNTS] if len(block) > COUNTS else ""
    if "V3000" in counts:
        inside = False
        for offset, line in enumerate(block):
            words = line.split()
            if words[:4] in (["M", "V30", "BEGIN", "ATOM"], ["M", "V30", "END", "ATOM"]):
                inside = words[2] == "BEGIN"
            elif inside and words[:2] == ["M", "V30"] and len(words) > 7:
                yield offset, words[4:7]
    elif counts[:3].strip().isdecimal():
        for offset in range(COUNTS + 1, min(COUNTS + 1 + int(counts[:3]), len(block))):
            yield offset, [block[offset][column : column + 10] for column in (0, 10, 20)]


def _is_drawing(block: list[str], positions: list[float]) -> bool:
    return block[1][20:22] == "2D" and not any(positions[2::3])


def _diagnosis(block: list[str], name: str, first: int) -> DataError:
    """The line RDKit stumbled over, found by the layout of V2000, with what is expected there."""
    where = f"{name}:{first}"
    if len(block) <= COUNTS:
        return MalformedRecord(
            f"{where}: found a record of {len(block)} lines, expected a molfile: three lines of "
            "header, the counts line, the atoms and `M  END`. " + ADVICE
        )
    counts = block[COUNTS]
    if "V3000" in counts:
        return MalformedRecord(
            f"{where}: found a V3000 record that RDKit cannot read, expected the blocks CTAB and "
            "ATOM with counts that agree and `M  END`. " + ADVICE
        )
    try:
        size = int(counts[:3])
    except ValueError:
        return MalformedRecord(
            f"{name}:{first + COUNTS}: found {shown(counts)}, expected the counts line of a "
            "molfile: atoms and bonds in three columns each. " + ADVICE
        )
    for line, atom in enumerate(block[COUNTS + 1 : COUNTS + 1 + size], first + COUNTS + 1):
        try:
            atomic_number(atom[31:34].strip())
        except UnknownElement as error:
            return UnknownElement(f"{name}:{line}: {error} {ADVICE}")
    return MalformedRecord(
        f"{where}: found a V2000 record that RDKit cannot read, expected {size} atoms, the bonds "
        "and `M  END`. The record may be cut off. " + ADVICE
    )
