"""Properties of structures in files: what is read, what is left out, and what comes back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eqflow.data import read
from eqflow.geometry import Clouds

WATER = "O 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"


def two(**properties: list[float]) -> Clouds:
    x = torch.arange(15, dtype=torch.float64).reshape(5, 3).sin()
    known = {name: torch.tensor(each, dtype=torch.float64) for name, each in properties.items()}
    return Clouds(x, torch.tensor([0, 3, 5]), torch.tensor([8, 1, 1, 9, 1]), properties=known)


@pytest.mark.parametrize("ending", [".extxyz", ".sdf", ".npz"])
def test_properties_come_back_bit_by_bit(tmp_path: Path, ending: str) -> None:
    gap = [0.1 + 0.2, -1.2345678901234567e-300]
    clouds = two(gap=gap, **{"zero point": [math.nan, 3.0]})
    path = tmp_path / f"two{ending}"
    clouds.write(path)
    back = read(path)
    assert back.properties.keys() == {"gap", "zero point"}
    assert back.properties["gap"].tolist() == gap
    assert back.properties["zero point"].isnan().tolist() == [True, False]
    assert torch.equal(back.x, clouds.x)


def test_formats_without_a_place_for_properties_leave_them_out(tmp_path: Path) -> None:
    path = tmp_path / "two.xyz"
    two(gap=[1.0, 2.0]).write(path)
    assert not read(path).properties
    assert "gap" not in path.read_text()


@pytest.mark.parametrize("name", ["x", "Properties", "file", 'a"b', "a=b", "a<b", "tab\there", ""])
@pytest.mark.parametrize("ending", [".extxyz", ".sdf", ".npz"])
def test_names_that_mean_something_else_are_left_out(
    tmp_path: Path, name: str, ending: str
) -> None:
    path = tmp_path / f"two{ending}"
    clouds = two(**{name: [1.0, 2.0], "gap": [3.0, 4.0]})
    clouds.write(path)
    back = read(path)
    assert back.properties.keys() == {"gap"}
    assert torch.equal(back.x, clouds.x)


def test_numbers_of_a_comment_are_read_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "water.xyz"
    comments = [
        'Lattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3 gap=0.25 pbc="F F F" n=3',
        "gap = -1e-3 name=water dipole=[1,2,3] inf=inf nan=nan flag=T date=2020-01-01",
        "nothing at all",
    ]
    path.write_text("".join(f"3\n{comment}\n{WATER}" for comment in comments))
    properties = read(path).properties
    assert properties.keys() == {"gap", "n"}
    assert properties["gap"].nan_to_num(99).tolist() == [0.25, -1e-3, 99]
    assert properties["n"].nan_to_num(99).tolist() == [3, 99, 99]


def test_the_numbers_of_the_qm9_release_have_their_names(tmp_path: Path) -> None:
    numbers = "157.7118 157.70997 157.70699 0. 13.21 -0.3877 0.1171 0.5048 35.3641 0.044749 "
    numbers += "-40.47893 -40.476062 -40.475117 -40.498597 6.469"
    path = tmp_path / "dsgdb9nsd_000001.xyz"
    path.write_text(f"3\ngdb 1\t{numbers}\n{WATER}1.0\t2.0\nO\tO\nInChI=1S/H2O\tInChI=1S/H2O\n")
    properties = read(path).properties
    assert len(properties) == 15
    assert properties["gap"].tolist() == [0.5048]
    assert properties["Cv"].tolist() == [6.469]


def test_data_fields_of_one_number_are_read(tmp_path: Path) -> None:
    path = tmp_path / "two.sdf"
    two(gap=[1.0, 2.0]).write(path)
    text = path.read_text().replace(
        "> <gap>\n1.0\n\n",
        ">  <ENERGY (kcal/mol)>  (17)\n -3.5 \n\n> <name>\nwater\n\n> <many>\n1\n2\n\n"
        "> <last>\n7\n",
    )
    path.write_text(text)
    properties = read(path).properties
    assert properties.keys() == {"ENERGY (kcal/mol)", "last", "gap"}
    assert properties["ENERGY (kcal/mol)"].nan_to_num(99).tolist() == [-3.5, 99]
    assert properties["last"].nan_to_num(99).tolist() == [7, 99]


def test_arrays_a_number_a_structure_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(
        path,
        num_atoms=np.array([3, 2]),
        charges=np.array([8, 1, 1, 9, 1]),
        positions=two().x.numpy(),
        index=np.array([1, 2]),
        gap=np.array([0.5, 0.25], np.float32),
        count=np.array([4, 5]),
        tag=np.array(["a", "b"]),
        vector=np.zeros((2, 3)),
    )
    properties = read(path).properties
    assert {name: values.tolist() for name, values in properties.items()} == {
        "gap": [0.5, 0.25],
        "count": [4.0, 5.0],
    }


def test_records_left_out_take_their_properties_with_them(tmp_path: Path) -> None:
    path = tmp_path / "some.extxyz"
    bad = WATER.replace("0.119", "nan")
    path.write_text(f"3\ngap=1\n{WATER}3\ngap=2\n{bad}3\ngap=3\n{WATER}")
    assert read(path, on_problem="skip").properties["gap"].tolist() == [1.0, 3.0]


def test_a_folder_of_files_has_the_properties_of_all(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text(f"3\ngap=1\n{WATER}")
    (tmp_path / "b.xyz").write_text(f"3\nmu=2\n{WATER}")
    properties = read(tmp_path).properties
    assert properties["gap"].nan_to_num(99).tolist() == [1, 99]
    assert properties["mu"].nan_to_num(99).tolist() == [99, 2]


@pytest.mark.parametrize("library", ["ase", "rdkit"])
def test_other_libraries_keep_properties(library: str) -> None:
    clouds = two(gap=[0.1 + 0.2, math.nan])
    there = getattr(clouds, f"to_{library}")()
    back = getattr(Clouds, f"from_{library}")(there)
    assert back.properties["gap"].nan_to_num(99).tolist() == [0.1 + 0.2, 99]


def test_what_ase_says_besides_numbers_is_left_out() -> None:
    (atoms, _) = two().to_ase()
    atoms.info.update(name="water", flag=True, energy=np.float32(2.5), count=np.int64(3))
    properties = Clouds.from_ase(atoms).properties
    assert {name: values.item() for name, values in properties.items()} == {
        "energy": 2.5,
        "count": 3.0,
    }
