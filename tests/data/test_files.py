"""What holds for every format: round trips, endings, dimensions, refusals."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from eqflow.data import ReadResult, read, read_report, writable_ending, write
from eqflow.errors import (
    DataError,
    EmptyData,
    EqflowError,
    NumericalError,
    StorageError,
    UsageError,
)
from eqflow.geometry import Clouds

TEXT = (".xyz", ".extxyz", ".sdf")
ENDINGS = (*TEXT, ".npz", ".npy")


CHARGED = (".extxyz", ".sdf", ".npz")


def structures(dimension: int, ragged: bool, elements: bool, dtype: torch.dtype) -> Clouds:
    sizes = [1, 4, 7] if ragged else [4, 4, 4]
    x = 3 * torch.randn(sum(sizes), dimension, dtype=dtype)
    numbers = torch.tensor([6, 1, 0, 17, 8, 7] * 2)[: len(x)] if elements else None
    return Clouds(x, torch.tensor([0, *sizes]).cumsum(0), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("elements", [True, False])
@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize(
    ("ending", "ragged"),
    [(e, r) for e in ENDINGS for r in (True, False) if (e, r) != (".npy", True)],
)
def test_reading_what_was_written_brings_back_the_same_bits(
    tmp_path, ending, dimension, ragged, elements, dtype
):
    clouds = structures(dimension, ragged, elements and ending != ".npy", dtype)
    path = tmp_path / f"some clouds Å{ending}"
    clouds.write(path)
    back = read(path, dimension=dimension)
    assert torch.equal(back.x.to(dtype), clouds.x)
    assert back.x.dtype == (torch.float64 if ending in TEXT else dtype)
    assert torch.equal(back.ptr, clouds.ptr)
    assert (back.numbers is None) == (clouds.numbers is None)
    if clouds.numbers is not None:
        assert torch.equal(back.numbers, clouds.numbers)
    assert len(set(back.source)) == 3
    assert all(str(path) in source for source in back.source)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_charges_are_read_back_where_the_format_holds_them(tmp_path, ending, dtype):
    clouds = structures(3, False, ending != ".npy", dtype)
    charges = torch.tensor([1, -1, 0, 2, 0, 0, -15, 1, 0, 15, 6, -3])
    clouds = replace(clouds, charges=charges)
    if ending != ".npy":
        clouds = replace(clouds, numbers=torch.tensor([6, 1, 0, 17, 8, 7, 9, 1, 1, 26, 6, 7]))
    else:
        clouds = replace(clouds, charges=0 * charges)
    clouds.write(tmp_path / f"a{ending}")
    back = read(tmp_path / f"a{ending}")
    assert torch.equal(back.x.to(dtype), clouds.x)
    if ending in CHARGED:
        assert torch.equal(back.charges, charges)
    else:
        assert back.charges is None


@pytest.mark.parametrize("ending", ENDINGS)
def test_charges_that_no_reader_takes_are_not_written(tmp_path, ending):
    clouds = structures(3, False, True, torch.float64)
    clouds = replace(clouds, charges=torch.tensor([0, 0, 0, 0, 0, 7] + [0] * 6))
    clouds.numbers[5] = 6
    with pytest.raises(DataError, match=r"structure 1, atom 1: .*C of charge 7, expected"):
        write(clouds, tmp_path / f"a{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_arrays_hold_any_dimension(tmp_path, ending):
    clouds = structures(5, ragged=False, elements=False, dtype=torch.float32)
    write(clouds, tmp_path / f"a{ending}")
    assert torch.equal(read(tmp_path / f"a{ending}").x, clouds.x)


@pytest.mark.parametrize("ending", TEXT)
def test_dimension_two_needs_every_z_to_be_zero(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    clouds = structures(3, ragged=True, elements=True, dtype=torch.float64)
    write(clouds, path)
    with pytest.raises(DataError, match=r"dimension=2.*12 of 12 points"):
        read(path, dimension=2)
    with pytest.raises(UsageError, match="dimension=4"):
        read(path, dimension=4)


@pytest.mark.parametrize("path", ["molecules.mol", "molecules", "a.xyz.gz", ".xyz"])
def test_an_unknown_ending_names_those_known(path, tmp_path):
    for call in (
        lambda: read(tmp_path / path),
        lambda: writable_ending(tmp_path / path),
        lambda: write(structures(3, False, False, torch.float64), tmp_path / path),
    ):
        with pytest.raises(UsageError, match=r"\.xyz \.extxyz \.sdf \.npz \.npy"):
            call()
    assert not list(tmp_path.iterdir())


def test_smiles_are_read_only(tmp_path):
    with pytest.raises(UsageError, match=r"expected one of \.xyz \.extxyz \.sdf \.npz \.npy\."):
        write(structures(3, False, False, torch.float64), tmp_path / "a.smi")
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_is_known_before_any_computing():
    assert writable_ending("A.SDF") == ".sdf"
    with pytest.raises(UsageError, match="several sizes"):
        writable_ending("a.npy", one_size=False)
    with pytest.raises(UsageError, match="at most 3"):
        writable_ending("a.xyz", dimension=4)


def test_ragged_clouds_are_no_npy(tmp_path):
    with pytest.raises(UsageError, match="several sizes"):
        write(structures(3, True, False, torch.float64), tmp_path / "a.npy")


@pytest.mark.parametrize("ending", ENDINGS)
def test_positions_that_are_not_finite_are_not_written(tmp_path, ending):
    clouds = structures(3, False, True, torch.float64)
    clouds.x[5, 1] = float("nan")
    with pytest.raises(NumericalError, match="structure 1"):
        write(clouds, tmp_path / f"a{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_structures_are_not_written(tmp_path, ending):
    none = Clouds(torch.zeros(0, 3), torch.tensor([0]))
    with pytest.raises(EmptyData):
        write(none, tmp_path / f"a{ending}")
    with pytest.raises(EmptyData):
        write(Clouds(torch.zeros(0, 3), torch.tensor([0, 0])), tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_that_is_a_file_cannot_be_written_to(tmp_path, ending):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write(structures(3, False, True, torch.float64), tmp_path / "file" / f"a{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        (b"", "0 bytes"),
        (b"<!DOCTYPE html>\n<html>404</html>", "web page"),
        (b"\n <html lang='en'>\n", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
    ],
)
def test_a_stand_in_for_the_file_is_named(tmp_path, ending, content, expected):
    path = tmp_path / f"a{ending}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read(path, dimension=3)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("seed", range(5))
def test_binary_garbage_is_a_data_error(tmp_path, ending, seed):
    content = np.random.default_rng(seed).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    head = {".npz": b"PK\x03\x04", ".npy": b"\x93NUMPY\x01\x00"}.get(ending, b"")
    for garbage in (content, head + content):
        (tmp_path / f"a{ending}").write_bytes(garbage)
        for on_problem in ("stop", "skip"):
            with pytest.raises(DataError):
                read(tmp_path / f"a{ending}", dimension=3, on_problem=on_problem)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_cut_off_anywhere_is_an_error_or_its_beginning(tmp_path, ending):
    clouds = structures(3, False, ending != ".npy", torch.float32)
    write(clouds, tmp_path / f"whole{ending}")
    content = (tmp_path / f"whole{ending}").read_bytes()
    path = tmp_path / f"cut{ending}"
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        try:
            back = read(path)
        except EqflowError:
            continue
        # A text may end within a number, which no reader can see.
        whole = len(back) - 1
        assert torch.equal(back[:whole].x.float(), clouds[:whole].x)


def test_on_problem_is_one_of_two_words(tmp_path):
    for ending in ENDINGS:
        with pytest.raises(UsageError, match="on_problem"):
            read(tmp_path / f"a{ending}", on_problem="ignore")


def test_read_gives_the_clouds_of_the_report(tmp_path):
    write(structures(3, True, True, torch.float64), tmp_path / "a.xyz")
    report = read_report(tmp_path / "a.xyz")
    assert isinstance(report, ReadResult)
    assert report.skipped == []
    assert torch.equal(read(str(tmp_path / "a.xyz")).x, report.clouds.x)


def test_importing_the_readers_imports_no_chemistry_library():
    code = (
        "import sys, eqflow.data, eqflow.chem\n"
        "heavy = {'ase', 'rdkit', 'torch_geometric'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
