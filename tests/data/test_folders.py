"""A folder of files is read as one file would be."""

import os

import numpy as np
import pytest
import torch

from eqflow.data import read, read_report, write
from eqflow.errors import DataError, EmptyData, MalformedRecord, UsageError
from eqflow.geometry import Clouds

WATER = "3\nwater\nO 0 0 0.1\nH 0 0.7 -0.4\nH 0 -0.7 -0.4\n"
HYDROXIDE = "2\nProperties=species:S:1:pos:R:3:formal_charges:I:1\nO 0 0 0 -1\nH 0 0 0.96 0\n"
BROKEN = "2\nwater\nO 0 0 0\nH 0 0\n"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "some molecules Å"
    place.mkdir()
    (place / "b.xyz").write_text(WATER * 2)
    (place / "a.extxyz").write_text(HYDROXIDE)
    return place


def test_files_are_joined_in_the_order_of_their_names(folder):
    clouds = read(folder)
    assert clouds.sizes.tolist() == [2, 3, 3]
    assert clouds.numbers.tolist() == [8, 1] + [8, 1, 1] * 2
    assert clouds.charges.tolist() == [-1] + [0] * 7
    first, second = folder / "a.extxyz", folder / "b.xyz"
    assert clouds.source == (f"{first}:1", f"{second}:1", f"{second}:6")


def test_every_format_may_be_there_and_positions_keep_their_bits(folder):
    clouds = read(folder)
    for ending in (".sdf", ".npz"):
        write(clouds, folder / f"c{ending}")
    np.savez(folder / "d.npz", x=np.eye(3, dtype=np.float32), ptr=[0, 3], numbers=[6, 1, 1])
    every = read(folder)
    assert every.x.dtype == torch.float64
    assert torch.equal(every.x, torch.cat([clouds.x] * 3 + [torch.eye(3).double()]))
    assert every.charges.sum() == -3


def test_what_is_hidden_of_another_ending_or_deeper_is_left_alone(folder):
    expected = read(folder)
    for name in (".hidden.xyz", "notes.txt", "molecules.smi", "xyz"):
        (folder / name).write_text("nothing to read")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "a.xyz").write_text(WATER)
    (folder / "z.xyz").mkdir()
    clouds, skipped = read_report(folder)
    assert skipped == []
    assert torch.equal(clouds.x, expected.x)


def test_a_folder_without_structures_says_what_it_has(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.smi", "b.smi", "README", ".a.xyz"):
        (tmp_path / name).write_text(WATER)
    with pytest.raises(
        EmptyData, match=r"3 files \(\.smi README\) and 1 folders, .*\.xyz .*\.npy"
    ) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(EmptyData, match="0 files and 0 folders"):
        read(tmp_path / "none")


def test_the_first_problem_is_raised_with_its_file_or_left_out_and_listed(folder):
    (folder / "aa.xyz").write_text(WATER + BROKEN)
    (folder / "empty.sdf").write_text("")
    (folder / "useless.xyz").write_text(BROKEN)
    with pytest.raises(MalformedRecord, match=r"aa\.xyz:9: found 3 columns"):
        read(folder)
    clouds, skipped = read_report(folder, on_problem="skip")
    assert clouds.sizes.tolist() == [2, 3, 3, 3]
    assert [os.path.basename(line.split(":")[0]) for line in skipped] == [
        "aa.xyz",
        "empty.sdf",
        "useless.xyz",
    ]


def test_a_folder_of_unusable_files_only_is_empty_data(tmp_path):
    (tmp_path / "a.xyz").write_text(BROKEN)
    (tmp_path / "b.xyz").write_text("")
    with pytest.raises(EmptyData, match=r"2 files .* none of them usable.*a\.xyz"):
        read(tmp_path, on_problem="skip")


def test_files_that_do_not_fit_each_other_are_named(folder):
    np.savez(folder / "c.npz", x=np.eye(3), ptr=[0, 3])
    with pytest.raises(DataError, match=r"c\.npz: found no elements, but a\.extxyz .* has;"):
        read(folder)
    write(Clouds(torch.zeros(2, 2), torch.tensor([0, 2])), folder / "c.npz")
    with pytest.raises(
        DataError, match=r"c\.npz: found points in 2 dimensions, but a\.extxyz .* 3"
    ):
        read(folder)


def test_dimension_and_on_problem_are_those_of_files(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(16.0).reshape(2, 8))
    np.save(tmp_path / "b.npy", np.arange(12.0).reshape(2, 6))
    assert read(tmp_path, dimension=2).sizes.tolist() == [4, 4, 3, 3]
    with pytest.raises(UsageError, match="dimension=2 or dimension=3"):
        read(tmp_path)
    with pytest.raises(UsageError, match="on_problem"):
        read(tmp_path, dimension=2, on_problem="ignore")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_may_not_be_listed_is_named(folder):
    folder.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed"):
            read(folder)
    finally:
        folder.chmod(0o700)
