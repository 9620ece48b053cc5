"""Ways to break a valid file: its bytes, its words and lines, its arrays, the values of its tree.

Each is a strategy of hypothesis that starts at a valid file and makes a few edits, so that what
comes out passes the first checks of a reader and fails further in.
"""

from __future__ import annotations

import copy
import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

# What stands where a number, an element or a name should.
WORDS = [
    b"nan",
    b"NaN",
    b"-inf",
    b"1e400",
    b"1e-320",
    b"9" * 400,
    b"-1",
    b"0",
    b"00",
    b"+1",
    b"999999999",
    b"1000000000000",
    b"9223372036854775808",
    b"1_000",
    b"0x10",
    b"1.5",
    b"1,5",
    b"1.5*^-3",
    b"*^",
    b"--1",
    b"e",
    b".",
    b"-",
    b"X",
    b"Xx",
    b"D",
    b"C",
    b"None",
    b"true",
    b"\0",
    b"\x1a",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc2\xa0",
    b"\xe2\x80\xa8",
    "٣".encode(),
    "²".encode(),
    "½".encode(),
    "𝟛".encode(),
    b"A" * 70_000,
    b"[" * 3_000,
    b"{" * 3_000,
    b'"',
    b"=",
    b":",
    b"$$$$",
    b"M  END",
    b"M  V30 COUNTS 999999999 0 0 0 0",
    b"M  CHG  1   1 300",
    b"M  CHG999",
    b"M  ISO  1   1 999",
    b"  0  0  0     0  0            999 V3000",
    b"999999  0     0  0            999 V2000",
    b"Properties=species:S:1:pos:R:3",
    b"Properties=pos:R:3:species:S:99999",
    b"Lattice=",
    b"gdb 1",
    b"../../../etc/passwd",
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a, *a]",
]
EDITS = 3


@st.composite
def broken_bytes(draw: Draw, seeds: Sequence[bytes]) -> bytes:
    """A valid file after a few edits of its bytes, words and lines."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, EDITS))):
        content = draw(st.sampled_from(BYTE_EDITS))(draw, content)
    return content


def broken_words(seeds: Sequence[str]) -> st.SearchStrategy[str]:
    """A valid text after a few such edits, or any text."""
    edited = broken_bytes([seed.encode() for seed in seeds]).map(
        lambda content: content.decode("utf-8", "replace")
    )
    return edited | st.text(max_size=40)


def _place(draw: Draw, content: bytes) -> int:
    return int(draw(st.integers(0, len(content))))


def _truncated(draw: Draw, content: bytes) -> bytes:
    return content[: _place(draw, content)]


def _without_a_part(draw: Draw, content: bytes) -> bytes:
    first = _place(draw, content)
    return content[:first] + content[first + draw(st.integers(1, 64)) :]


def _with_a_part_twice(draw: Draw, content: bytes) -> bytes:
    first = _place(draw, content)
    part = content[first : first + draw(st.integers(1, 200))]
    there = _place(draw, content)
    return content[:there] + part + content[there:]


def _with_a_flipped_bit(draw: Draw, content: bytes) -> bytes:
    if not content:
        return content
    place = draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ (1 << draw(st.integers(0, 7)))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def _with_a_word(draw: Draw, content: bytes) -> bytes:
    place = _place(draw, content)
    return content[:place] + draw(st.sampled_from(WORDS)) + content[place:]


def _with_another_word(draw: Draw, content: bytes) -> bytes:
    found = list(re.finditer(rb"[^\s:=,\[\]\"]+", content[:20_000]))
    if not found:
        return content
    match = draw(st.sampled_from(found))
    return content[: match.start()] + draw(st.sampled_from(WORDS)) + content[match.end() :]


def _with_words_swapped(draw: Draw, content: bytes) -> bytes:
    found = list(re.finditer(rb"\S+", content[:20_000]))
    if len(found) < 2:
        return content
    a, b = sorted(
        (draw(st.sampled_from(found)), draw(st.sampled_from(found))), key=lambda m: m.start()
    )
    if a.start() == b.start():
        return content
    return content[: a.start()] + b[0] + content[a.end() : b.start()] + a[0] + content[b.end() :]


def _with_lines_changed(draw: Draw, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    place = draw(st.integers(0, len(lines) - 1))
    match draw(st.integers(0, 3)):
        case 0:
            del lines[place]
        case 1:
            lines.insert(draw(st.integers(0, len(lines))), lines[place])
        case 2:
            lines[place] = b"\n"
        case _:
            lines.insert(place, draw(st.sampled_from(WORDS)) + b"\n")
    return b"".join(lines)


def _in_another_encoding(draw: Draw, content: bytes) -> bytes:
    match draw(st.integers(0, 4)):
        case 0:
            return b"\xef\xbb\xbf" + content
        case 1:
            return content.replace(b"\n", b"\r\n")
        case 2:
            return content.replace(b"\n", b"\r")
        case 3:
            return content.decode("latin-1").encode("utf-16")
        case _:
            return content.replace(b"\n", b"\x0b")


BYTE_EDITS = [
    _truncated,
    _without_a_part,
    _with_a_part_twice,
    _with_a_flipped_bit,
    _with_a_word,
    _with_another_word,
    _with_another_word,
    _with_words_swapped,
    _with_lines_changed,
    _with_lines_changed,
    _in_another_encoding,
]

# No long doubles: the bytes that pad them are any, and examples would not repeat.
DTYPES = ["f2", "f4", "f8", "i1", "i8", "u1", "u8", ">f8", ">i4", "?", "c16", "U5", "S3", "O"]
DTYPES += ["M8[s]", "m8[s]", "V8"]
NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, 1e300, 1e-300, 0, 1, -1, 2**31, 2**62, 2**63]
NUMBERS += [-(2**63), 2**64 - 1, 10**4 + 1]


@st.composite
def broken_arrays(
    draw: Draw, seeds: Sequence[Mapping[str, np.ndarray]], names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays after a few edits of their types, shapes, values and names."""
    arrays = dict(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, EDITS))):
        if not arrays:
            break
        key = draw(st.sampled_from(sorted(arrays)))
        match draw(st.integers(0, 7)):
            case 0:
                del arrays[key]
            case 1:
                others = [*names, "x", "ptr", "positions", "name/../a", "ü", ""]
                arrays[draw(st.sampled_from(others))] = arrays.pop(key)
            case 2:
                arrays[key] = arrays[draw(st.sampled_from(sorted(arrays)))]
            case 3 | 4:
                arrays[key] = broken_array(draw, arrays[key])
            case 5:
                arrays[key] = _reshaped(draw, arrays[key])
            case _:
                arrays[key] = _with_other_values(draw, arrays[key])
    return arrays


def broken_array(draw: Draw, array: np.ndarray) -> np.ndarray:
    """The same numbers in another type, as far as they can be."""
    kind = draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"):
        try:
            return array.astype(kind)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            return np.zeros(array.shape, kind)


def _reshaped(draw: Draw, array: np.ndarray) -> np.ndarray:
    match draw(st.integers(0, 6)):
        case 0:
            return array.reshape(-1)
        case 1:
            return array[None]
        case 2:
            return array[:-1] if array.ndim else array
        case 3:
            return array.T
        case 4:
            return array[:0] if array.ndim else array
        case 5:
            return np.asarray(array.flat[0]) if array.size else array
        case _:
            return np.concatenate([array, array]) if array.ndim else array


def _with_other_values(draw: Draw, array: np.ndarray) -> np.ndarray:
    if not array.size or array.dtype.kind not in "fiub":
        return array
    value = draw(st.sampled_from(NUMBERS))
    changed = array.astype(draw(st.sampled_from([array.dtype.str, "f8", "u8", "i8"])))
    place = slice(None) if draw(st.booleans()) else draw(st.integers(0, array.size - 1))
    with np.errstate(all="ignore"):
        try:
            changed.reshape(-1)[place] = value
        except (OverflowError, ValueError):
            return array
    return changed


def npy_bytes(array: np.ndarray) -> bytes:
    """An `.npy` file; objects are pickled into it."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def promising(array: np.ndarray, shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """An `.npy` file with the bytes of an array, and a header that promises another shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + array.tobytes()


LIES = [(10**15,), (10**9, 10**9), (2**62, 4), (0, 10**18), (-1,), (3, -4), (1,) * 40, (10**12, 3)]


@st.composite
def broken_archive(
    draw: Draw,
    seeds: Sequence[Mapping[str, np.ndarray]],
    names: Sequence[str] = (),
) -> bytes:
    """An `.npz` whose arrays, headers, members or bytes are broken."""
    arrays = draw(broken_arrays(seeds, names))
    members = {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}
    if members and draw(st.integers(0, 3)) == 0:
        key = draw(st.sampled_from(sorted(members)))
        match draw(st.integers(0, 4)):
            case 0:
                shape = draw(st.sampled_from(LIES))
                kind = draw(st.sampled_from(["<f8", "<i8", "|O", "<U9", "|V0"]))
                members[key] = promising(np.zeros(4), shape, kind)
            case 1:
                members[key] = draw(broken_bytes([members[key]]))
            case 2:
                members[key.removesuffix(".npy")] = members.pop(key)
            case 3:
                members[key] = archive_bytes(members)
            case _:
                members[key] = b"\0" * draw(st.integers(0, 3_000_000))
    how = zipfile.ZIP_DEFLATED if draw(st.booleans()) else zipfile.ZIP_STORED
    content = archive_bytes(members, how)
    return draw(broken_bytes([content])) if draw(st.integers(0, 3)) == 0 else content


def archive_bytes(members: Mapping[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(member, content, compress_type=how)
    return buffer.getvalue()


def repacked(draw: Draw, content: bytes) -> bytes:
    """A zip archive one member of which is broken, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    key = draw(st.sampled_from(sorted(members)))
    members[key] = draw(broken_bytes([members[key]]))
    return archive_bytes(members)


LEAVES: list[Any] = [None, True, -1, 0, 1, 2, 10**6, 10**9, 10**30, 1.5, 1e308, math.nan, math.inf]
LEAVES += ["", "x", "a" * 300, [], {}, [None], [[1]], {"a": {"b": 1}}]


def _deep() -> Any:
    nested: Any = 1
    for _ in range(400):
        nested = [nested]
    return nested


@st.composite
def broken_tree(draw: Draw, tree: Any) -> Any:
    """Nested dictionaries and lists with a few of their values replaced, removed or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, EDITS))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        match draw(st.integers(0, 5)):
            case 0:
                del parent[key]
            case 1:
                parent[key] = _deep()
            case 2 if isinstance(parent, dict):
                parent[draw(st.sampled_from(["strange", "name", "format", "a.b"]))] = parent.pop(
                    key
                )
            case 3 if isinstance(parent[key], torch.Tensor):
                parent[key] = parent[key].reshape(-1)[:1].to(torch.float16)
            case _:
                parent[key] = copy.deepcopy(draw(st.sampled_from(LEAVES)))
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    keys: Sequence[Any] = ()
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = range(len(tree))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found += [(tree, key), *_places(tree[key])]
    return found


def safetensors_bytes(header: Mapping[str, Any], data: bytes) -> bytes:
    """A safetensors file: the length of its header, the header as JSON, the numbers."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def saying_sizes(archive: bytes, size: int, said: int) -> bytes:
    """A zip archive whose directory says another size of the members that unpack to one."""
    said = min(said, 2**32 - 2)  # what the directory has room for without an extension
    return archive.replace(struct.pack("<I", size), struct.pack("<I", said))
