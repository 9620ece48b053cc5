"""The doors to files of structures: the ending decides the format.

| ending | holds |
|---|---|
| `.xyz` | elements and positions in up to 3 dimensions, any sizes |
| `.extxyz .sdf` | the same, formal charges, and properties of structures |
| `.npz` | everything but the sources, in any dimension |
| `.npy` | positions of structures of one size, in any dimension |
| `.smi` | molecules as SMILES, embedded in 3-D when read; never written |

Positions from a text are float64; arrays keep their float type. Charges that are all 0 are read as
none. Instead of a file there may be a folder of files with positions. An SDF of RDKit molecules
holds their bonds as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from eqflow import storage
from eqflow.chem.elements import impossible_charge, is_possible_charge
from eqflow.data.arrays import read_npy, read_npz, write_npy, write_npz
from eqflow.data.folders import join_files, structure_files
from eqflow.data.records import ReadResult, require_choice
from eqflow.data.sdf import read_sdf, write_records, write_sdf
from eqflow.data.smi import read_smi
from eqflow.data.stated_properties import writable
from eqflow.data.xyz import read_xyz, write_xyz
from eqflow.errors import DataError, EmptyData, NumericalError, UsageError
from eqflow.geometry.clouds import Clouds

if TYPE_CHECKING:
    import rdkit.Chem

Reader = Callable[[Path, int | None, str], ReadResult]
Writer = Callable[[Clouds, IO[bytes]], None]

READERS: dict[str, Reader] = {
    ".xyz": read_xyz,
    ".extxyz": read_xyz,
    ".sdf": read_sdf,
    ".npz": read_npz,
    ".npy": read_npy,
    ".smi": read_smi,
}
WRITERS: dict[str, Writer] = {
    ".xyz": partial(write_xyz, extended=False),
    ".extxyz": partial(write_xyz, extended=True),
    ".sdf": write_sdf,
    ".npz": write_npz,
    ".npy": write_npy,
}


def read(path: str | Path, dimension: int | None = None, on_problem: str = "stop") -> Clouds:
    """Structures of a file or folder; see `read_report`, of which these are the clouds."""
    return read_report(path, dimension, on_problem).clouds


def read_report(
    path: str | Path, dimension: int | None = None, on_problem: str = "stop"
) -> ReadResult:
    """Structures of a file or folder, and what was left out.

    Every structure is sound: positions are finite, and where there are elements no coordinate is
    beyond 10⁴ Å and no two atoms are nearer than 10⁻³ Å. `clouds.source` is `file:line`, or
    `file#index` for arrays.

    Of a folder, every file with positions is read, in the order of their names. Hidden files, those
    with other endings (`.smi` among them), and folders within it are left alone.

    Args:
        path: File that ends in `.xyz .extxyz .sdf .npz .npy .smi`, or a folder of such files.
        dimension: Coordinates of a point. Two for planar structures in a format of three, where
            every z must be 0; needed for flat arrays.
        on_problem: `stop` raises the first problem, `skip` leaves such records out and lists them.

    Raises:
        UsageError: If the ending, `dimension` or `on_problem` is none of those known.
        DataError: If a file cannot be read or has a bad record, or files of a folder do not fit
            each other.
        EmptyData: If no structure is left, or a folder has no such file.
    """
    path = Path(path)
    if path.is_dir():
        require_choice(on_problem)
        files = structure_files(path, WRITERS)
        return join_files(path, files, partial(read_report, dimension=dimension), on_problem)
    return READERS[_known_ending(path, READERS)](path, dimension, on_problem)


def write(clouds: Clouds, path: str | Path) -> None:
    """Write structures, atomically, in the format of the ending.

    Reading them again gives bitwise the same positions, elements, sizes and properties, as far as
    the table above lets the format hold them; planar ones are read with `dimension=2`. (In SDF,
    float64 is kept to 18 decimals and float32 to 14.)

    Raises:
        UsageError: If the ending is unknown, or the format cannot hold these clouds.
        EmptyData: If there is nothing to write.
        NumericalError: If a position is not finite, which no reader would take.
        DataError: If a charge is none an atom can have, which no reader would take either.
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    storage.write_atomically(path, _writing(clouds, path))


def encoded(clouds: Clouds, path: str | Path) -> bytes:
    """What `write` writes to a path. In a format of text, files one after another are one file.

    Raises:
        UsageError, EmptyData, NumericalError, DataError: As `write`.
    """
    file = io.BytesIO()
    _writing(clouds, Path(path))(file)
    return file.getvalue()


def _writing(clouds: Clouds, path: Path) -> Callable[[IO[bytes]], None]:
    """How clouds are put into the file of a path, once they are known to fit."""
    ragged = len(clouds) > 0 and clouds.segments.uniform is None
    ending = writable_ending(path, dimension=clouds.dimension, one_size=not ragged)
    if not len(clouds) or not bool((clouds.sizes > 0).all()):
        raise EmptyData(
            f"{path}: found {len(clouds)} structures to write, "
            f"{int((clouds.sizes == 0).sum())} of them without points; expected at least 1, each "
            "with points."
        )
    bad = clouds.segments.ids[~clouds.x.detach().isfinite().all(1)]
    if bad.numel():
        raise NumericalError(
            f"{path}: found positions that are not finite in structure {int(bad[0])} and "
            f"{bad.unique().numel() - 1} others. Leave them out before writing."
        )
    _require_possible_charges(clouds, path)
    return partial(WRITERS[ending], writable(clouds))


def write_molecules(
    molecules: Iterable[rdkit.Chem.Mol], path: str | Path, dtype: torch.dtype = torch.float64
) -> int:
    """Write RDKit molecules with bonds, charges and properties to an `.sdf`, atomically.

    They are written one by one as they come, so that the iterable may be longer than what fits into
    memory; `eqflow.evaluate.with_bonds` is one.

    Args:
        molecules: Each with a conformer; its properties become the data fields of its record.
        path: File that ends in `.sdf`.
        dtype: Float type of the positions, which decides how many decimals bring them back.

    Returns:
        How many were written.

    Raises:
        UsageError: If the ending is another.
        EmptyData: If there is no molecule, or one without atoms.
        DataError: If one has no conformer.
        NumericalError: If a position is not finite, which no reader would take.
        StorageError: If the file cannot be written. Any error leaves `path` as it was.
    """
    path = Path(path)
    if path.suffix.lower() != ".sdf":
        raise UsageError(
            f"{path}: found the ending {path.suffix!r}, expected .sdf, the format with bonds. "
            "Rename the file, or write clouds."
        )
    count = 0

    def written(file: IO[bytes]) -> None:
        nonlocal count
        count = _write_molecules(molecules, path, file, dtype)

    storage.write_atomically(path, written)
    return count


def encoded_molecules(
    molecules: Iterable[rdkit.Chem.Mol], path: str | Path, dtype: torch.dtype = torch.float64
) -> bytes:
    """What `write_molecules` writes to a path; files one after another are one file.

    Raises:
        EmptyData, DataError, NumericalError: As `write_molecules`.
    """
    file = io.BytesIO()
    _write_molecules(molecules, Path(path), file, dtype)
    return file.getvalue()


def _write_molecules(
    molecules: Iterable[rdkit.Chem.Mol], path: Path, file: IO[bytes], dtype: torch.dtype
) -> int:
    count = 0
    for molecule in molecules:
        _require_writable(molecule, f"{path}: molecule {count}")
        write_records([molecule], file, dtype)
        count += 1
    if not count:
        raise EmptyData(f"{path}: found 0 molecules to write, expected at least 1.")
    return count


def writable_ending(path: str | Path, dimension: int = 3, one_size: bool = True) -> str:
    """The ending of a file that can be written, checked before anything is computed.

    Args:
        path: File to be written.
        dimension: Coordinates of the points that will be written.
        one_size: Whether all structures will have the same number of points.

    Raises:
        UsageError: If the ending is unknown, or its format cannot hold such structures.

    >>> writable_ending("samples.extxyz")
    '.extxyz'
    """
    ending = _known_ending(Path(path), WRITERS)
    if ending in (".xyz", ".extxyz", ".sdf") and dimension > 3:
        raise UsageError(
            f"{path}: points of {dimension} coordinates asked for, but {ending} holds at most 3. "
            "Write .npz or .npy."
        )
    if ending == ".npy" and not one_size:
        raise UsageError(
            f"{path}: structures of several sizes asked for, but .npy holds one size. Write .npz."
        )
    return ending


def _known_ending(path: Path, endings: Collection[str]) -> str:
    ending = path.suffix.lower()
    if ending not in endings:
        raise UsageError(
            f"{path}: found the ending {ending!r}, expected one of {' '.join(endings)}. "
            "Rename the file, or convert it to one of these."
        )
    return ending


def _require_possible_charges(clouds: Clouds, path: Path) -> None:
    if clouds.charges is None:
        return
    charges = clouds.charges.cpu().numpy()
    numbers = np.zeros_like(charges) if clouds.numbers is None else clouds.numbers.cpu().numpy()
    for row in np.flatnonzero(~is_possible_charge(numbers, charges)).tolist():
        index = int(clouds.segments.ids[row])
        said = impossible_charge(int(numbers[row]), int(charges[row]))
        raise DataError(f"{path}: structure {index}, atom {row - clouds.ptr[index]}: {said}")


def _require_writable(molecule: rdkit.Chem.Mol, name: str) -> None:
    if not molecule.GetNumAtoms():
        raise EmptyData(f"{name}: found no atoms, expected at least 1.")
    if not molecule.GetNumConformers():
        raise DataError(
            f"{name}: found no conformer, expected positions. Embed it first: "
            "AllChem.EmbedMolecule(Chem.AddHs(molecule))."
        )
    if not np.isfinite(molecule.GetConformer().GetPositions()).all():
        raise NumericalError(f"{name}: found positions that are not finite. Leave it out.")
