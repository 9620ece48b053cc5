"""Broken files by name, each with what is said of it: what users have, and what fuzzing found.

`BROKEN` are read as structures, `OTHERS` by `eqflow train` alone, with the words that say how.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faults import mutations

WATER = "3\nwater\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"
AFTER = WATER + "3\nwater\n"  # the next line is the eighth
MOLFILE = """
     eqflow         3D

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 F   0  0
    0.0000    0.0000    0.9200 H   0  0
  1  2  1  0
M  END
$$$$
"""


class Broken(NamedTuple):
    """A file that cannot be used.

    Attributes:
        name: Of the file.
        content: Its bytes, its text, or what makes it.
        says: What the message has in it; `:8:` is the line that it names.
        code: The exit code.
        words: More words of `eqflow train`.
    """

    name: str
    content: str | bytes | Callable[[Path], Any]
    says: tuple[str, ...]
    code: int = 3
    words: tuple[str, ...] = ()


def write(broken: Broken, folder: Path) -> Path:
    """Put it into a folder."""
    path = folder / broken.name
    if callable(broken.content):
        broken.content(path)
    elif isinstance(broken.content, str):
        path.write_text(broken.content, encoding="utf-8")
    else:
        path.write_bytes(broken.content)
    return path


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def packed(**changed: Any) -> bytes:
    x = np.arange(24.0).reshape(8, 3) ** 1.5
    return npz(**({"x": x, "ptr": np.array([0, 3, 8])} | changed))


def clique(count: int) -> str:
    """A molfile whose every atom is bonded to all others, which ends RDKit's process."""
    bonds = [(i, j) for i in range(1, count + 1) for j in range(1, i)]
    atoms = [f"M  V30 {i} C {i % 7} {i % 11} {i % 13} 0" for i in range(1, count + 1)]
    lines = ["", "     eqflow         3D", "", "  0  0  0  0  0  0  0  0  0  0999 V3000"]
    lines += ["M  V30 BEGIN CTAB", f"M  V30 COUNTS {count} {len(bonds)} 0 0 0"]
    lines += ["M  V30 BEGIN ATOM", *atoms, "M  V30 END ATOM", "M  V30 BEGIN BOND"]
    lines += [f"M  V30 {k} 2 {i} {j}" for k, (i, j) in enumerate(bonds, 1)]
    lines += ["M  V30 END BOND", "M  V30 END CTAB", "M  END", "$$$$"]
    return "\n".join(lines) + "\n"


def _objects() -> bytes:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, ("unpickled",))

    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Trap(), Trap()], dtype=object), ptr=np.array([0, 2]))
    return buffer.getvalue()


def bomb(size: int = 2_000_000_000_000) -> bytes:
    """An archive of a kilobyte whose directory and header promise more than it can hold."""
    content = mutations.promising(np.zeros(100), (size // 24, 3))
    return mutations.saying_sizes(
        mutations.archive_bytes(
            {"x.npy": content, "ptr.npy": mutations.npy_bytes(np.array([0, size // 24]))},
            mutations.zipfile.ZIP_DEFLATED,
        ),
        len(content),
        size,
    )


def _folder(**files: str | bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (path / name.replace("_", ".")).write_bytes(data)

    return make


def _long_line(path: Path) -> None:
    path.write_bytes(b"3\n" + b"x" * (17 << 20) + b"\n")


def idx(*shape: int, content: bytes = b"") -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


BROKEN = {
    "empty": Broken("a.xyz", "", ("0 bytes",)),
    "blank": Broken("a.xyz", "\n \n\n", ("found 0 structures", "at least 1")),
    "a web page": Broken("a.xyz", "<!DOCTYPE html><html></html>", ("web page", "download")),
    "a Git LFS pointer": Broken(
        "a.extxyz", "version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)
    ),
    "no such file": Broken("a.xyz", lambda path: None, ("No such file",)),
    "a pipe": Broken("a.xyz", os.mkfifo, ("a pipe or device",)),
    "a line without end": Broken("a.xyz", _long_line, (":2:", "16,777,216 characters")),
    "no count": Broken("a.xyz", f"{WATER}water\n{WATER}", (":6:", "expected the number of atoms")),
    "zero atoms": Broken("a.xyz", f"{WATER}0\nnothing\n", (":6:", "found 0 atoms")),
    "a count that lies": Broken("a.xyz", f"{WATER}999999999\n\nH 0 0 0\n", (":6:", "cut off")),
    "cut off": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 0 1\n", (":6:", "2 lines of atoms")),
    "an atom too many": Broken(
        "a.xyz", f"{WATER}H 0 0 5\n", (":6:", "expected the number of atoms")
    ),
    "a column missing": Broken(
        "a.xyz", f"{AFTER}O 0 0\nH 0 0 1\nH 0 1 0\n", (":8:", "found 3 columns")
    ),
    "no number": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 0,7 0\nH 0 1 0\n", (":9:", "'0,7'")),
    "a number of Python": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 1_0 0\nH 0 1 0\n", (":9:", "1_0")),
    "digits of another script": Broken(
        "a.xyz", f"{AFTER}O 0 0 0\nH 0 ٣ 0\nH 0 1 0\n", (":9:", "coordinate")
    ),
    "NaN": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 nan 0\nH 0 1 0\n", (":9:", "finite")),
    "infinity": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 1e400 0\nH 0 1 0\n", (":9:", "finite")),
    "absurd": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 1e6 0\nH 0 1 0\n", (":9:", "Check the unit")),
    "coincident": Broken("a.xyz", f"{AFTER}O 0 0 0\nH 0 1 0\nH 0 1 0\n", (":10:", "atom 1")),
    "unknown element": Broken("a.xyz", f"{AFTER}O 0 0 0\nQq 0 1 0\nH 0 0 1\n", (":9:", "'Qq'")),
    "columns that lie": Broken(
        "a.extxyz", "1\nProperties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0\n", (":3:", "7 as")
    ),
    "columns without end": Broken(
        "a.extxyz", "1\nProperties=species:S:99999999999:pos:R:3\nH 0 0 0\n", (":2:", "Properties")
    ),
    "a half charge": Broken(
        "a.extxyz",
        "1\nProperties=species:S:1:pos:R:3:formal_charges:R:1\nH 0 0 0 0.5\n",
        (":3:", "whole number"),
    ),
    "a molfile cut off": Broken(
        "a.sdf", MOLFILE + MOLFILE.replace("M  END\n", ""), (":10:", "cut off")
    ),
    "counts of a molfile that lie": Broken(
        "a.sdf", MOLFILE.replace("  2  1", "999999"), (":7:", "expected an atom")
    ),
    "a bond to nowhere": Broken(
        "a.sdf", MOLFILE.replace("  1  2  1  0", "  1  9  1  0"), (":1:", "each bond once")
    ),
    "an element of a molfile": Broken("a.sdf", MOLFILE.replace(" F ", " Fq"), (":5:", "'Fq'")),
    "a drawing": Broken(
        "a.sdf", MOLFILE.replace("3D", "2D").replace("0.9200", "0.0000"), (":1:", "2-D drawing")
    ),
    "atoms of a clique at one place": Broken(
        "a.sdf", clique(80).replace("M  V30 2 C 2 2 2 0", "M  V30 2 C 1 1 1 0"), (":1:", "atom 1")
    ),
    "no SMILES": Broken("a.smi", "C1CC\n", (":1:", "a SMILES that RDKit reads")),
    "objects": Broken("a.npz", _objects(), ("Python objects in x", "unpickled")),
    "a pickle": Broken("a.npy", pickle.dumps([1.0]), ("found a pickle", "never opened")),
    "a promise of a petabyte": Broken(
        "a.npy", mutations.promising(np.zeros(4), (10**14, 3)), ("2.4 PB", "32 bytes")
    ),
    "a bomb": Broken("a.npz", bomb(), ("damaged file", "unpack to 4.29 GB")),
    "a header without end": Broken(
        "a.npy", mutations.npy_bytes(np.zeros(3)).replace(b"}", b" "), ("damaged file",)
    ),
    "an archive cut off": Broken("a.npz", packed()[:-60], ("damaged file", "cut off")),
    "another layout": Broken("a.npz", npz(energies=np.zeros(3)), ("energies (3,)", "x and ptr")),
    "NaN in an array": Broken("a.npz", packed(x=np.full((8, 3), np.nan)), ("#0", "finite")),
    "sizes beyond 64 bits": Broken(
        "a.npz",
        npz(
            positions=np.ones((8, 3)),
            charges=np.ones(8, int),
            num_atoms=np.array([2**64 - 1, 9], np.uint64),
        ),
        ("structure of 18446744073709551615 points",),
    ),
    "an array without points": Broken("a.npy", mutations.npy_bytes(np.zeros(7)), ("(7,)",)),
    "a folder of nothing": Broken("a", _folder(), ("folder of 0 files",)),
    "a folder of others": Broken("a", _folder(notes_txt="x"), (".txt", "at least one file")),
    "one bad file in a folder": Broken(
        "a", _folder(a_xyz=WATER, b_xyz=f"{AFTER}O 0 0 0\nH 0 nan 0\nH 0 1 0\n"), ("b.xyz:9:",)
    ),
}

NODES = ("task=node_classification", "model=grand")


def _graph(**changed: Any) -> bytes:
    arrays = {
        "x": np.ones((6, 2), np.float32),
        "y": np.array([0, 1] * 3),
        "edge_index": np.array([[0, 1, 2], [1, 2, 3]]),
    }
    return npz(**(arrays | changed))


OTHERS = {
    "images cut off": Broken(
        "a.idx", idx(2, 28, 28, content=bytes(9)), ("cut off",), words=("data.source=images",)
    ),
    "images of no pixels": Broken(
        "a.idx", idx(2, 0, 0), ("at least one pixel",), words=("data.source=images",)
    ),
    "images that unpack to more than can be": Broken(
        "a.gz",
        gzip.compress(idx(2**31, 2**31, 4)),
        ("expected 18,446,744,073,709,551,616", "cut off"),
        words=("data.source=images",),
    ),
    "labels for images": Broken(
        "a.idx", idx(3, content=bytes(3)), ("Labels",), words=("data.source=images",)
    ),
    "no voxels": Broken(
        "a.npz",
        npz(packed=np.zeros((1, 2), np.uint8), shape=np.array([1, 3, 3, 3])),
        ("expected (1, 4)",),
        words=("data.source=voxels",),
    ),
    "an archive of QM9 cut off": Broken(
        "a.tar.gz",
        gzip.compress(bytes(5000))[:30],
        ("uncharacterized.txt",),
        words=("data.source=qm9",),
    ),
    "features of NaN": Broken(
        "a.npz", _graph(x=np.full((6, 2), np.nan)), ("x of node 0", "finite"), words=NODES
    ),
    "edges to nowhere": Broken(
        "a.npz", _graph(edge_index=np.array([[0], [9]])), ("from 0 to 9", "0 to 5"), words=NODES
    ),
    "more features than can be": Broken(
        "a.npz",
        npz(
            y=np.array([0, 1]),
            edge_index=np.array([[0], [1]]),
            x_shape=np.array([2, 10**12]),
            x_indptr=np.array([0, 1, 2]),
            x_indices=np.array([0, 1]),
        ),
        ("1,000,000,000,000", "columns"),
        words=NODES,
    ),
    "objects in a graph": Broken(
        "a.npz", _graph(y=np.array([None] * 6)), ("Python objects in y",), words=NODES
    ),
    "no nodes": Broken(
        "a.npz",
        _graph(x=np.ones((0, 2)), y=np.zeros(0, int), edge_index=np.zeros((2, 0), int)),
        ("at least one node",),
        words=NODES,
    ),
    "too few structures to divide": Broken(
        "a.xyz", WATER, ("1", "validation"), words=("data.validation=0.05",)
    ),
    "points that are all one": Broken(
        "a.npy", mutations.npy_bytes(np.zeros((20, 3, 3))), ("20 items in 1 groups",)
    ),
}
