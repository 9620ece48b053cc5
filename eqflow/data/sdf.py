"""The `.sdf` format: molfiles, V2000 or V3000, each ended by a line `$$$$`.

RDKit reads each record as it is: no atom is added or removed and no chemistry is checked. Elements,
positions, formal charges and data fields of one number are read; bonds, radicals, isotopes and
other data fields are left out, and charges that are all 0 are none. A record marked `2D` whose z
are all 0 is a drawing, not a structure, and refused unless two dimensions are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from eqflow.chem.convert import Atoms, to_rdkit
from eqflow.chem.elements import LARGEST_CHARGE, atomic_number
from eqflow.chem.molfile import data_fields, molfile, read_molfile
from eqflow.data.records import ADVICE, Collector, ReadResult, accept, require_choice
from eqflow.data.stated_properties import of_fields
from eqflow.data.text import Lines, open_lines, shown
from eqflow.errors import DataError, MalformedRecord, UnknownElement
from eqflow.geometry.clouds import Clouds

if TYPE_CHECKING:
    import rdkit.Chem

END = "$$$$"
COUNTS = 3  # The counts line is the fourth of a molfile.
NUMBER = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*")
CHARGE = re.compile(r"\sCHG=(\S*)")


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
                atoms = _structure(block, str(path), lines.number - len(block))
                if _is_drawing(block, atoms) and dimension != 2:
                    raise MalformedRecord(
                        f"{start}: found a 2-D drawing, expected 3-D positions. Embed the molecule "
                        "first, or read it with dimension=2. " + ADVICE
                    )
            except DataError as error:
                collector.refuse(error)
                if on_problem == "stop":
                    break
                continue
            collector.add(
                atoms.numbers.tolist(),
                atoms.x.ravel().tolist(),
                atoms.charges.tolist(),
                start,
                of_fields(block),
            )
    return accept(collector.records(), on_problem, dimension)


def write_sdf(clouds: Clouds, file: IO[bytes]) -> None:
    """Write clouds with at most three dimensions, without bonds."""
    write_records(to_rdkit(clouds), file, clouds.x.dtype)


def write_records(molecules: Iterable[rdkit.Chem.Mol], file: IO[bytes], dtype: torch.dtype) -> None:
    """Write RDKit molecules with their bonds, charges and properties, one record each.

    Args:
        molecules: Each with a conformer.
        file: File to write to.
        dtype: Float type of the positions, which decides how many decimals bring them back.
    """
    for molecule in molecules:
        file.write(f"{molfile(molecule, dtype)}{data_fields(molecule)}{END}\n".encode())


def _block(lines: Lines) -> list[str] | None:
    """The lines of the next record with its end, or None where only blank lines are left."""
    block: list[str] = []
    while taken := lines.take(1):
        block += taken
        if taken[0].startswith(END):
            return block
    return block if any(line.strip() for line in block) else None


def _structure(block: list[str], name: str, first: int) -> Atoms:
    for offset, coordinates in _coordinates(block):
        if not all(map(NUMBER.fullmatch, coordinates)):
            raise MalformedRecord(
                f"{name}:{first + offset}: found {shown(block[offset])}, expected an atom with the "
                "numbers x, y, z. " + ADVICE
            )
    for offset, charges in _charges(block):
        if not all(map(_is_charge, charges)):
            raise MalformedRecord(
                f"{name}:{first + offset}: found {shown(block[offset])}, expected formal charges "
                f"from {-LARGEST_CHARGE} to {LARGEST_CHARGE}. " + ADVICE
            )
    text = "".join(line.rstrip("\r\n") + "\n" for line in block if not line.startswith(END))
    read = read_molfile(text)
    if read is None:
        raise _diagnosis(block, name, first)
    if not len(read.numbers):
        raise MalformedRecord(f"{name}:{first}: found 0 atoms, expected at least 1. " + ADVICE)
    return read


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


def _charges(block: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The texts of the charges that a line states, and that line in the block.

    RDKit keeps 8 bits of them: it takes 256 for 0 without a word, so they are checked as well.
    """
    for offset, line in enumerate(block):
        if line.startswith("M  END"):
            return
        if line.startswith("M  CHG"):
            yield offset, line.split()[4::2]
        elif line.startswith("M  V30"):
            yield offset, CHARGE.findall(line)


def _is_charge(text: str) -> bool:
    digits = text.removeprefix("-").removeprefix("+")
    return digits.isascii() and digits.isdigit() and int(digits[:9]) <= LARGEST_CHARGE


def _is_drawing(block: list[str], atoms: Atoms) -> bool:
    return block[1][20:22] == "2D" and not atoms.x[:, 2].any()


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
        f"{where}: found a V2000 record that RDKit cannot read, expected {size} atoms, each bond "
        "once and between two of them, and `M  END`. The record may be cut off. " + ADVICE
    )
