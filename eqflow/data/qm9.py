"""QM9: 133,885 small organic molecules of H, C, N, O, F with geometries from B3LYP/6-31G(2df,p).

The release states 15 properties of each, such as `gap`; see `eqflow.data.stated_properties`.

3,054 of them came out of the relaxation as another molecule than they went in; their list is part
of the release, and they are left out unless asked for.

Reference: Quantum chemistry structures and properties of 134 kilo molecules (Ramakrishnan, Dral,
Rupp, von Lilienfeld, 2014), doi:10.1038/sdata.2014.22; data doi:10.6084/m9.figshare.c.978904.v5.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from eqflow import storage
from eqflow.data.arrays import load_array, read_npz
from eqflow.data.download import Progress, fetch
from eqflow.data.records import Collector, accept
from eqflow.data.text import Lines, open_lines, require_content
from eqflow.data.xyz import collect, line_of_atom
from eqflow.errors import DataError, EmptyData
from eqflow.geometry.clouds import Clouds

FIGSHARE = "https://springernature.figshare.com/ndownloader/files/"
ARCHIVE = "dsgdb9nsd.xyz.tar.bz2"
ARCHIVE_URL = FIGSHARE + "3195389"
ARCHIVE_SHA256 = "3a63848ac80691bdb8d41834b575afad345b9300d7a2db0c38adb7f6eaa8360c"
EXCLUDED = "uncharacterized.txt"
EXCLUDED_URL = FIGSHARE + "3195404"
EXCLUDED_SHA256 = "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24"
EXCLUDED_COUNT = 3054
# Bytes of a download, above the 86,144,227 and 486,752 that are published.
LARGEST_ARCHIVE, LARGEST_LIST = 100 << 20, 1 << 20

# Far above what a file of 29 atoms has, and how many there are: no archive grows beyond.
LARGEST_MEMBER = 1 << 20  # bytes
MOST_MEMBERS = 1_000_000

_ARCHIVE_ENDINGS = (".tar.bz2", ".tar.gz", ".tgz", ".tar")
_MEMBER = re.compile(r"(\d{1,9})\.xyz$")


def load_qm9(
    path: str | Path | None = None,
    cache: str | Path | None = None,
    keep_uncharacterized: bool = False,
    progress: Progress | None = None,
) -> Clouds:
    """The molecules of QM9, positions in Å, ordered by their number in the release.

    Args:
        path: An `.npz` with `num_atoms`, `charges`, `positions`, taken as it is; or the archive of
            the release, or a folder of its `.xyz` files, with `uncharacterized.txt` beside them
            (in the folder of the archive, or in the folder itself). Where None, the release is
            downloaded once (87 MB), parsed once, and kept in `cache`.
        cache: Folder for the download; `$EQFLOW_CACHE`, else `~/.cache/eqflow`, where None.
        keep_uncharacterized: Whether the 3,054 molecules stay; the list is then not needed.
        progress: Called with the bytes received and those expected during a download.

    Raises:
        DataError: If a file is missing, damaged, or not what the release has.
        StorageError: If the cache cannot be written.
    """
    if path is None:
        return _cached(cache_folder(cache), keep_uncharacterized, progress)
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return read_npz(path).clouds
    if not path.is_dir() and not path.name.endswith(_ARCHIVE_ENDINGS):
        raise DataError(
            f"{path}: found neither an .npz, an archive ({' '.join(_ARCHIVE_ENDINGS)}) nor a "
            "folder of .xyz files. Give one of these, or no path at all to download the release."
        )
    beside = path if path.is_dir() else path.parent
    excluded = np.zeros(0, np.int64) if keep_uncharacterized else _excluded(beside / EXCLUDED)
    clouds, index = _parsed(path)
    return clouds[np.flatnonzero(~np.isin(index, excluded)).tolist()]


def cache_folder(cache: str | Path | None = None) -> Path:
    """Folder for downloads: `cache`, else `$EQFLOW_CACHE`, else `~/.cache/eqflow`."""
    if cache is None:
        cache = os.environ.get("EQFLOW_CACHE") or Path("~/.cache/eqflow").expanduser()
    return Path(cache)


def _cached(folder: Path, keep_uncharacterized: bool, progress: Progress | None) -> Clouds:
    # An earlier version kept no properties, in `qm9.npz`.
    parsed, excluded = folder / "qm9_with_properties.npz", folder / "qm9_excluded.npy"
    if not (parsed.is_file() and excluded.is_file()):
        storage.require_writable(folder)
        archive = fetch(ARCHIVE_URL, folder / ARCHIVE, ARCHIVE_SHA256, progress, LARGEST_ARCHIVE)
        excluded_list = folder / EXCLUDED
        fetch(EXCLUDED_URL, excluded_list, EXCLUDED_SHA256, progress, LARGEST_LIST)
        listed = _excluded(excluded_list)
        clouds, index = _parsed(archive)
        storage.write_atomically(excluded, partial(_save_excluded, np.isin(index, listed)))
        storage.write_atomically(parsed, partial(_save, clouds, index))
    clouds = read_npz(parsed).clouds
    if keep_uncharacterized:
        return clouds
    return clouds[np.flatnonzero(~load_array(excluded)).tolist()]


def _save(clouds: Clouds, index: np.ndarray, file: IO[bytes]) -> None:
    arrays: dict[str, Any] = {
        "index": index.astype(np.int32),
        "num_atoms": clouds.sizes.numpy().astype(np.int8),
        "charges": clouds.h.flatten().numpy().astype(np.int8),
        "positions": clouds.x.numpy(),
    }
    arrays |= {name: values.numpy() for name, values in clouds.properties.items()}
    np.savez(file, **arrays)


def _save_excluded(excluded: np.ndarray, file: IO[bytes]) -> None:
    np.save(file, excluded)


def _parsed(path: Path) -> tuple[Clouds, np.ndarray]:
    """All molecules of an archive or folder in the order of their numbers, and these."""
    collector = Collector(str(path), line_of_atom)
    index = []
    for number, lines in _folder(path) if path.is_dir() else _archive(path):
        before = len(collector.sources)
        collect(lines, collector, stop=True)
        if collector.problems:
            raise collector.problems[0].error
        if len(collector.sources) != before + 1:
            raise DataError(
                f"{lines.name}: found {len(collector.sources) - before} structures, expected the "
                "one that a file of the release has. Download it again."
            )
        index.append(number)
    if not index:
        raise EmptyData(f"{path}: found 0 files named *_000001.xyz and so on, expected molecules.")
    order = np.argsort(index, kind="stable")
    return accept(collector.records(), "stop").clouds[order.tolist()], np.asarray(index)[order]


def _folder(path: Path) -> Iterator[tuple[int, Lines]]:
    for member in sorted(path.iterdir()):
        if named := _MEMBER.search(member.name):
            with open_lines(member) as lines:
                yield int(named[1]), lines


class _Member(tarfile.TarInfo):
    """A member, or what is said of the next one, no larger than it may be: both are read whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
        """The member of a header.

        Raises:
            TarError: If it is too large.
        """
        member = super().frombuf(buf, encoding, errors)
        _require_small(member)
        return member


def _require_small(member: tarfile.TarInfo) -> None:
    if not 0 <= member.size <= LARGEST_MEMBER:
        raise tarfile.TarError(
            f"{member.name!r} of {member.size:,} bytes, at most {LARGEST_MEMBER:,}"
        )


def _archive(path: Path) -> Iterator[tuple[int, Lines]]:
    """The members of an archive, read as streams: nothing is extracted to the disk.

    Only plain files are read, by the number in their name: wherever the name says they belong, and
    whatever a link or a device points at, is of no account.
    """
    require_content(path)
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as archive:
            for count, member in enumerate(archive):
                if count == MOST_MEMBERS:
                    raise tarfile.TarError(f"more than {MOST_MEMBERS:,} members")
                _require_small(member)  # what stands before it may have changed its size
                plain = member.isreg() and not member.issparse()
                content = archive.extractfile(member) if plain else None
                if content is not None and (named := _MEMBER.search(member.name)):
                    text = io.StringIO(content.read().decode("utf-8", "replace"))
                    inside = " ".join(member.name.splitlines())
                    yield int(named[1]), Lines(text, f"{path}/{inside}")
    except (tarfile.TarError, OSError, EOFError, ValueError, TypeError, LookupError) as error:
        raise DataError(
            f"{path}: found a damaged archive ({error or type(error).__name__}), expected the one "
            f"of the release ({ARCHIVE_URL}, SHA-256 {ARCHIVE_SHA256}). Download it again."
        ) from error


def _excluded(path: Path) -> np.ndarray:
    """The numbers of the uncharacterised molecules, the first column of their list."""
    if not path.is_file():
        raise DataError(
            f"{path}: not found, expected the list of {EXCLUDED_COUNT} uncharacterised molecules "
            f"there. Download it from {EXCLUDED_URL}, or pass keep_uncharacterized=True."
        )
    with open_lines(path) as lines:
        first = [(line.split() or [""])[0] for line in iter(lambda: "".join(lines.take(1)), "")]
    numbers = np.array([int(word) for word in first if word.isascii() and word.isdigit()], np.int64)
    if len(numbers) != EXCLUDED_COUNT:
        raise DataError(
            f"{path}: found {len(numbers)} numbered lines, expected {EXCLUDED_COUNT}. "
            f"Download it again from {EXCLUDED_URL}."
        )
    return numbers
