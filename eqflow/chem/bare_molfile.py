"""A molfile without its bonds and groups: which atoms there are, where, and how charged.

RDKit looks for the handedness of each atom in a molfile from its bonds and positions, whatever it
is asked for, and an atom with sixty bonds ends the process. Atoms are all that is read here, so
RDKit is shown nothing else; bonds are only checked.

Of V2000, lines `M  CHG` stay and, as they take back the charges of the atom block, `M  RAD`. Of
V3000, the blocks other than that of the atoms go.

Reference: CTfile formats, BIOVIA (2020).
"""

from __future__ import annotations

from collections.abc import Sequence

COUNTS = 3  # The counts line is the fourth of a molfile.
KEPT = ("M  CHG", "M  RAD", "M  END")
WITH_A_LINE_MORE = ("A  ", "G  ")  # Names of atoms and groups: the next line is any text.
LEFT_OUT = ("BOND", "SGROUP", "OBJ3D", "COLLECTION")


def bare_molfile(lines: Sequence[str]) -> list[str]:
    """The lines of a molfile that are about its atoms.

    Args:
        lines: The molfile, without line ends.

    Raises:
        ValueError: If it is none, or a bond is there twice or not between two of its atoms.
    """
    if len(lines) <= COUNTS:
        raise ValueError("no counts line")
    return _version_3000(lines) if "V3000" in lines[COUNTS] else _version_2000(lines)


def _version_2000(lines: Sequence[str]) -> list[str]:
    counts = lines[COUNTS]
    atoms, bonds = whole(counts[:3]), whole(counts[3:6])
    first = COUNTS + 1 + atoms
    listed = lines[first : first + bonds]
    if len(listed) < bonds:
        raise ValueError("fewer bonds than the counts line says")
    _require_bonds(
        [(whole(line[:3]), whole(line[3:6])) for line in listed], set(range(1, atoms + 1))
    )
    kept = [*lines[:COUNTS], f"{counts[:3]}  0{counts[6:]}", *lines[COUNTS + 1 : first]]
    is_text = False
    for line in lines[first + bonds :]:
        if line.startswith(KEPT) and not is_text:
            kept.append(line)
            if line.startswith("M  END"):
                break
        is_text = not is_text and line.startswith(WITH_A_LINE_MORE)
    return kept


def _version_3000(lines: Sequence[str]) -> list[str]:
    kept: list[str] = []
    bonds: list[tuple[int, int]] = []
    atoms: set[int] = set()
    promised = 0
    block, continued = "", []
    for line in lines:
        words = line.split()
        if words[:2] != ["M", "V30"]:
            kept.append(line)
            if line.startswith("M  END"):
                break
            continue
        # A hyphen at its end continues a line in the next.
        if words[-1] == "-" or line.rstrip().endswith("-"):
            continued.append(line)
            continue
        whole_line, continued = [*continued, line], []
        words = _joined(whole_line)
        if words[:1] == ["BEGIN"] and words[1:2] and words[1] in LEFT_OUT:
            block = words[1]
        elif words[:1] == ["END"] and words[1:2] == [block] and block:
            block = ""
        elif block == "BOND":
            bonds.append((whole(_word(words, 2)), whole(_word(words, 3))))
        elif block:
            continue
        elif words[:1] == ["COUNTS"]:
            promised = whole(_word(words, 2))
            kept.append(f"M  V30 COUNTS {_word(words, 1)} 0 0 0 0")
        else:
            if words and words[0].isascii() and words[0].isdigit():
                atoms.add(whole(words[0]))
            kept += whole_line
    if len(bonds) != promised or block:
        raise ValueError("another number of bonds than the counts line says")
    _require_bonds(bonds, atoms)
    return kept + continued


def whole(text: str) -> int:
    """A count in digits; nothing stands for 0, as in columns that are left blank.

    Raises:
        ValueError: If it is anything else.
    """
    text = text.strip()
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no count")
    return int(text[:10] or 0)


def _joined(lines: Sequence[str]) -> list[str]:
    """The words behind `M  V30` of a line and its continuations."""
    text = "".join(line.strip()[len("M  V30") :].removesuffix("-") for line in lines)
    return text.split()


def _word(words: Sequence[str], place: int) -> str:
    if place >= len(words):
        raise ValueError("a line is too short")
    return words[place]


def _require_bonds(bonds: Sequence[tuple[int, int]], atoms: set[int]) -> None:
    known = set()
    for first, second in bonds:
        pair = (min(first, second), max(first, second))
        if first == second or not {first, second} <= atoms or pair in known:
            raise ValueError(f"a bond of {first} and {second}")
        known.add(pair)
