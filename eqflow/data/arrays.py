"""Structures in numpy files: three layouts of `.npz`, and a plain `.npy`; never unpickled.

| layout of `.npz` | arrays |
|---|---|
| eqflow | `x` (N, d), `ptr` (B + 1,), and `numbers` (N,) where there are elements |
| QM9 | `num_atoms` (B,), `charges` (N,), `positions` (N, d) |
| dense | `positions` (B, n, d), and `numbers` (n,) or (B, n) where there are elements |

Formal charges may stand beside them as `formal_charges`, in the shape that `numbers` has or would
have; the `charges` of QM9 are those of the nuclei, its atomic numbers. Further arrays (B,) are
properties of the structures, and others are left out. A `.npy` holds (B, n, d), or (B, n·d) when
the dimension is said. Positions keep their float32 or float64; integers become float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np

from eqflow.chem.elements import LARGEST
from eqflow.data.numpy_files import load_array, load_arrays
from eqflow.data.records import ReadResult, Records, accept, require_choice
from eqflow.data.stated_properties import of_arrays
from eqflow.errors import DataError, UnknownElement, UsageError
from eqflow.geometry.clouds import Clouds

LAYOUTS = (
    "x and ptr [and numbers]; num_atoms, charges and positions; "
    "or positions (B, n, d) [and numbers]"
)

# Arrays that only a graph has.
EDGES = {"edge_index", "edges", "adj_indptr"}


def read_npz(path: Path, dimension: int | None = None, on_problem: str = "stop") -> ReadResult:
    """Structures of an `.npz` file in one of the layouts above.

    Raises:
        DataError: If the file is damaged, of another layout, or its arrays do not fit each other.
        EmptyData: If no structure is left.
    """
    require_choice(on_problem)
    arrays = load_arrays(path)
    charges = arrays.get("formal_charges")
    if {"x", "ptr"} <= arrays.keys():
        x, numbers = arrays["x"], arrays.get("numbers")
        sizes = _sizes_of_ptr(arrays["ptr"], path)
    elif {"num_atoms", "charges", "positions"} <= arrays.keys():
        x, numbers, sizes = arrays["positions"], arrays["charges"], arrays["num_atoms"]
    elif arrays.get("positions", np.zeros(0)).ndim == 3:
        numbers = arrays.get("numbers")
        known = of_arrays(arrays, len(arrays["positions"]))
        return _dense(arrays["positions"], numbers, charges, path, dimension, on_problem, known)
    else:
        found = ", ".join(f"{key} {value.shape}" for key, value in arrays.items()) or "none"
        hint = ""
        if arrays.keys() & EDGES:
            hint = " These are of a graph: to classify its nodes, say task=node_classification."
        raise DataError(f"{path}: found the arrays {found}, expected {LAYOUTS}.{hint}")
    known = of_arrays(arrays, len(sizes)) if sizes.ndim == 1 else {}
    return _packed(x, sizes, numbers, charges, path, dimension, on_problem, known)


def read_npy(path: Path, dimension: int | None = None, on_problem: str = "stop") -> ReadResult:
    """Structures of one size from an `.npy` file, (B, n, d) or, with `dimension`, (B, n·d).

    Raises:
        DataError: If the file is damaged or its shape is another.
        UsageError: If the array is flat and `dimension` is not said.
        EmptyData: If no structure is left.
    """
    require_choice(on_problem)
    x = load_array(path)
    if x.ndim == 2:
        if dimension is None:
            raise UsageError(
                f"{path}: found a flat array {x.shape}, which may be points in any dimension. "
                "Say dimension=2 or dimension=3."
            )
        if dimension < 1 or x.shape[1] % dimension:
            raise UsageError(
                f"{path}: found rows of {x.shape[1]} numbers, which are no points of "
                f"dimension={dimension}. Say a dimension that divides {x.shape[1]}."
            )
        x = x.reshape(len(x), -1, dimension)
    if x.ndim != 3:
        raise DataError(f"{path}: found an array {x.shape}, expected (B, n, d) or (B, n·d).")
    return _dense(x, None, None, path, dimension, on_problem, {})


def write_npz(clouds: Clouds, file: IO[bytes]) -> None:
    """Write the layout of eqflow, everything but the sources."""
    arrays = {"x": clouds.x.detach(), "ptr": clouds.ptr}
    if clouds.numbers is not None:
        arrays["numbers"] = clouds.numbers
    if clouds.charges is not None:
        arrays["formal_charges"] = clouds.charges
    arrays |= clouds.properties
    content: dict[str, Any] = {name: array.cpu().numpy() for name, array in arrays.items()}
    np.savez(file, **content)


def write_npy(clouds: Clouds, file: IO[bytes]) -> None:
    """Write positions as (B, n, d); elements and charges have no place in this format.

    Raises:
        UsageError: If the clouds differ in size.
    """
    if clouds.segments.uniform is None:
        raise UsageError(
            f"found clouds of {int(clouds.sizes.min())} to {int(clouds.sizes.max())} points, but "
            ".npy holds clouds of one size. Write them as .npz."
        )
    x = clouds.x.detach().cpu().numpy()
    np.save(file, x.reshape(len(clouds), clouds.segments.uniform, clouds.dimension))


def _dense(
    x: np.ndarray,
    numbers: np.ndarray | None,
    charges: np.ndarray | None,
    path: Path,
    dimension: int | None,
    on_problem: str,
    properties: dict[str, np.ndarray],
) -> ReadResult:
    count, size, width = x.shape
    flat = x.reshape(count * size, width)
    if numbers is not None:
        numbers = _of_every_structure("numbers", numbers, x.shape, path)
    if charges is not None:
        charges = _of_every_structure("formal_charges", charges, x.shape, path)
    sizes = np.full(count, size)
    return _packed(flat, sizes, numbers, charges, path, dimension, on_problem, properties)


def _of_every_structure(
    name: str, labels: np.ndarray, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    """Labels (n,) or (B, n) as (B·n,)."""
    count, size = shape[:2]
    if labels.shape not in ((size,), (count, size)):
        raise DataError(
            f"{path}: found {name} {labels.shape} for positions {shape}, expected "
            f"({size},) or ({count}, {size})."
        )
    return np.broadcast_to(labels, (count, size)).reshape(-1)


def _packed(
    x: np.ndarray,
    sizes: np.ndarray,
    numbers: np.ndarray | None,
    charges: np.ndarray | None,
    path: Path,
    dimension: int | None,
    on_problem: str,
    properties: dict[str, np.ndarray],
) -> ReadResult:
    if x.ndim != 2 or x.shape[1] < 1 or x.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: found positions {x.shape} of {x.dtype}, expected (N, d) real numbers."
        )
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or (sizes < 0).any():
        raise DataError(
            f"{path}: found sizes {sizes.shape} of {sizes.dtype}, expected (B,) counts."
        )
    if sizes.size and int(sizes.max()) > len(x):
        # Larger ones may add up to anything in 64 bits.
        raise DataError(
            f"{path}: found a structure of {int(sizes.max())} points, but {len(x)} points in "
            "all: the sizes do not add up. The file may be cut off."
        )
    sizes = sizes.astype(np.int64)
    if sizes.sum() != len(x):
        raise DataError(
            f"{path}: found {len(x)} points, but the sizes of the {len(sizes)} structures add "
            f"up to {sizes.sum()}. The file may be cut off."
        )
    if numbers is not None:
        numbers = _elements(numbers, len(x), path)
    if charges is not None:
        charges = _integers("formal charges", charges, len(x), path)
    sources = [f"{path}#{index}" for index in range(len(sizes))]
    records = Records(
        str(path), _floats(x), numbers, sizes, sources, charges=charges, properties=properties
    )
    return accept(records, on_problem, dimension)


def _floats(x: np.ndarray) -> np.ndarray:
    single = x.dtype.kind == "f" and x.dtype.itemsize <= 4
    return np.ascontiguousarray(x, dtype=np.float32 if single else np.float64)


def _elements(numbers: np.ndarray, count: int, path: Path) -> np.ndarray:
    numbers = _integers("atomic numbers", numbers, count, path)
    wrong = np.flatnonzero((numbers < 0) | (numbers > LARGEST))
    if wrong.size:
        raise UnknownElement(
            f"{path}: found the atomic number {numbers[wrong[0]]} at row {wrong[0]}, expected 1 to "
            f"{LARGEST}, or 0 for a point without an element. Correct it."
        )
    return numbers


def _integers(name: str, labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: found {name} {labels.shape} of {labels.dtype}, expected ({count},) integers."
        )
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path}: found {int(labels.max())} among the {name}, beyond 64 bits.")
    return labels.astype(np.int64)


def _sizes_of_ptr(ptr: np.ndarray, path: Path) -> np.ndarray:
    if ptr.ndim != 1 or ptr.size < 1 or ptr.dtype.kind not in "iu":
        raise DataError(
            f"{path}: found ptr {ptr.shape} of {ptr.dtype}, expected (B + 1,) integers."
        )
    ptr = ptr.astype(np.int64)
    if ptr[0] != 0 or (np.diff(ptr) < 0).any():
        raise DataError(f"{path}: found a ptr that does not start at 0 or falls somewhere.")
    return np.diff(ptr)
