"""XYZ and extended XYZ: each way a record can be wrong, and where the message says it is."""

import pytest
import torch
from ase.build import molecule
from ase.io import read as ase_read
from ase.io import write as ase_write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqflow.data import read, read_report, write
from eqflow.errors import DataError, EmptyData, EqflowError, MalformedRecord, UnknownElement
from eqflow.geometry import Clouds

WATER = "3\nwater\nO 0 0 0.1\nH 0 0.7 -0.4\nH 0 -0.7 -0.4\n"
QM9_METHANE = (
    "5\ngdb 1\t157.7118\t0.\nC\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689\n"
    "H\t 0.002150416\t-0.0060313176\t 1.2*^-5\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.765748e-4\t 0.133922\n"
    "H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923\n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\t1341.365\nC\tC\t\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)


@pytest.fixture
def file(tmp_path):
    def make(text: str, name: str = "a.xyz"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return make


def test_plain_records_with_further_columns_blank_lines_and_windows_ends(file):
    text = "\n" + WATER.replace("0.1", "0.1 9 9") + "\n\n" + WATER + "\n"
    clouds = read(file(text.replace("\n", "\r\n")))
    assert clouds.sizes.tolist() == [3, 3]
    assert clouds.numbers.tolist() == [8, 1, 1] * 2
    assert clouds.x[2].tolist() == [0, -0.7, -0.4]
    assert [source.rsplit(":", 1)[1] for source in clouds.source] == ["2", "9"]


def test_columns_are_found_by_properties(file):
    text = (
        '1\nLattice="9 0 0 0 9 0 0 0 9" Properties=tag:I:1:pos:R:3:force:R:3:species:S:1 pbc="F"\n'
        "5 1 2 3 7 8 9 Cl\n"
        "1\nProperties=Z:I:1:pos:R:3\n17 1 2 3\n"
        "1\nProperties=pos:R:3\n1 2 3\n"
    )
    clouds = read(file(text))
    assert clouds.numbers.tolist() == [17, 17, 0]
    assert clouds.x.tolist() == [[1, 2, 3]] * 3


def test_files_of_ase_are_read_as_ase_reads_them(tmp_path):
    atoms = [molecule("CH3CH2OH"), molecule("H2O")]
    atoms[1].set_cell([9, 9, 9])
    ase_write(tmp_path / "a.extxyz", atoms)
    clouds = read(tmp_path / "a.extxyz")
    for ours, theirs in zip(clouds.to_ase(), ase_read(tmp_path / "a.extxyz", ":"), strict=True):
        assert (ours.get_positions() == theirs.get_positions()).all()
        assert (ours.get_atomic_numbers() == theirs.get_atomic_numbers()).all()


@pytest.mark.parametrize("ending", [".xyz", ".extxyz"])
def test_ase_reads_what_is_written(tmp_path, ending):
    clouds = Clouds.from_ase([molecule("CH3CH2OH"), molecule("H2O")])
    write(clouds, tmp_path / f"a{ending}")
    back = Clouds.from_ase(ase_read(tmp_path / f"a{ending}", ":"))
    assert torch.equal(back.x, clouds.x)
    assert torch.equal(back.numbers, clouds.numbers)


HEAD = "2\nProperties=species:S:1:pos:R:3:"


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("formal_charges:I:1", ("1", "-1"), [1, -1]),
        ("formal_charge:R:1", ("+1.0", "-1"), [1, -1]),
        ("tags:I:1:formal_charges:I:1", ("7 1", "7 -1"), [1, -1]),
        ("initial_charges:R:1", ("1.0", "-1.00000000"), [1, -1]),
        ("initial_charges:R:1:formal_charges:I:1", ("0.3 1", "-0.3 -1"), [1, -1]),
        ("initial_charges:R:1", ("0.3", "-0.3"), None),
        ("initial_charges:R:1", ("1", "nan"), None),
        ("initial_charges:R:1", ("1", "?"), None),
        ("initial_charges:R:1", ("0", "0.0"), None),
        ("initial_charges:R:2", ("1 1", "-1 -1"), None),
        ("charges:R:1", ("8", "1"), None),
    ],
)
def test_formal_charges_are_columns_of_whole_numbers(file, column, values, expected):
    text = f"{HEAD}{column}\nO 0 0 0 {values[0]}\nH 0 0 1 {values[1]}\n"
    charges = read(file(text)).charges
    assert (None if charges is None else charges.tolist()) == expected
    if expected:
        assert read(file(WATER + text)).charges.tolist() == [0, 0, 0, *expected]


@pytest.mark.parametrize("value", ["0.5", "x", "nan", "inf", "1e300", "200"])
def test_formal_charges_that_are_not_whole_are_named_by_line(file, value):
    path = file(f"{HEAD}formal_charges:I:1\nO 0 0 0 0\nH 0 0 1 {value}\n")
    with pytest.raises(MalformedRecord, match=rf":4: found '{value}', expected a formal charge"):
        read(path)


def test_a_charge_no_atom_can_have_is_named_by_line(file):
    path = file(f"{HEAD}formal_charges:I:1\nO 0 0 0 0\nH 0 0 1 2\n")
    with pytest.raises(DataError, match=r":4: found an atom H of charge 2, expected .*-15 to 1"):
        read(path)


def test_ase_reads_the_charges_that_are_written_and_we_read_its(tmp_path):
    clouds = Clouds.from_ase([molecule("CH3CH2OH"), molecule("H2O")])
    clouds = Clouds(clouds.x, clouds.ptr, clouds.numbers, charges=torch.arange(12) % 3 - 1)
    write(clouds, tmp_path / "a.extxyz")
    assert torch.equal(
        Clouds.from_ase(ase_read(tmp_path / "a.extxyz", ":")).charges, clouds.charges
    )
    ase_write(tmp_path / "b.extxyz", clouds.to_ase())
    assert torch.equal(read(tmp_path / "b.extxyz").charges, clouds.charges)


def test_a_molecule_of_the_qm9_release_is_read_as_it_is(file):
    clouds = read(file(QM9_METHANE + QM9_METHANE + WATER))
    assert clouds.sizes.tolist() == [5, 5, 3]
    assert clouds.x[1, 2] == 1.2e-5


def test_heavy_hydrogen_is_hydrogen(file):
    assert read(file(WATER.replace("H", "D", 1))).numbers.tolist() == [8, 1, 1]


def test_a_comment_need_not_be_utf8(tmp_path):
    (tmp_path / "a.xyz").write_bytes(WATER.encode().replace(b"water", b"in \xc5ngstr\xf6m"))
    assert len(read(tmp_path / "a.xyz")) == 1


BAD = {
    "count": ("three\nwater\nO 0 0 0\n", MalformedRecord, 1, "number of atoms"),
    "zero atoms": ("0\nnothing\n", MalformedRecord, 1, "0 atoms"),
    "too few lines": ("4\nwater\nO 0 0 0\nH 0 0 1\n", MalformedRecord, 1, "2 atoms before"),
    "count too large": ("4\nw\nO 0 0 0\nH 0 0 1\nH 0 1 0\n", MalformedRecord, 1, "3 atoms before"),
    "count too small": ("1\nw\nO 0 0 0\nH 0 0 1\n", MalformedRecord, 4, "number of atoms"),
    "properties empty": ("1\nProperties=\nO 1\n", MalformedRecord, 3, "2 columns"),
    "columns": ("2\nw\nO 0 0 0\nH 0 0\n", MalformedRecord, 4, "3 columns"),
    "no number": ("2\nw\nO 0 0 0\nH 0 0 1,5\n", MalformedRecord, 4, "'1,5'"),
    "nan": ("2\nw\nO 0 0 0\nH 0 0 nan\n", DataError, 4, "finite"),
    "infinite": ("2\nw\nO 0 0 -inf\nH 0 0 0\n", DataError, 3, "finite"),
    "overflow": ("2\nw\nO 0 0 1e999\nH 0 0 0\n", DataError, 3, "finite"),
    "absurd": ("2\nw\nO 0 0 0\nH 0 2e4 0\n", DataError, 4, "unit"),
    "element": ("2\nw\nO 0 0 0\nHy 0 0 1\n", UnknownElement, 4, "nearest"),
    "coincident": ("3\nw\nO 0 0 0\nH 0 0 1\nH 0 0 1.0001\n", DataError, 5, "atom 1"),
    "properties": ("1\nProperties=species:S:1\nO\n", MalformedRecord, 2, "pos:R:3"),
    "pos of two": ("1\nProperties=species:S:1:pos:R:2\nO 1 2\n", MalformedRecord, 2, "pos:R:3"),
    "no properties": ("1\nProperties=pos:R:x\nO 1 2 3\n", MalformedRecord, 2, "count"),
    "properties short": (
        "1\nProperties=species:S:1:pos:R:3:q:R:1\nO 1 2 3\n",
        MalformedRecord,
        3,
        "5 as Properties says",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_by_file_and_line(file, case):
    text, error, line, words = BAD[case]
    path = file(WATER + text + WATER)
    with pytest.raises(error, match="expected") as caught:
        read(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{path}:{5 + line}: found ")
    assert words in str(caught.value)
    assert "on_problem" in str(caught.value)


@pytest.mark.parametrize("case", BAD)
def test_skipping_leaves_out_the_bad_record_only_and_lists_it(file, case):
    path = file(WATER + BAD[case][0] + WATER)
    clouds, skipped = read_report(path, on_problem="skip")
    whole = read(file(WATER, "whole.xyz"))
    assert torch.equal(clouds[0].x, whole.x)
    assert torch.equal(clouds[-1].x, whole.x)
    # With a wrong count, nobody can know how many atoms the first part really had.
    assert len(clouds) == (3 if case == "count too small" else 2)
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{path}:")


def test_the_first_problem_of_a_file_is_the_one_raised(file):
    path = file(WATER + BAD["nan"][0] + BAD["count"][0] + BAD["coincident"][0])
    with pytest.raises(DataError, match=f"{path.name}:9: .*finite"):
        read(path)


def test_no_structure_left_is_empty_data_with_counts(file):
    with pytest.raises(EmptyData, match=r"found 2 structures, 2 of them unusable.*finite"):
        read(file(BAD["nan"][0] + BAD["element"][0]), on_problem="skip")
    with pytest.raises(EmptyData, match="found 0 structures"):
        read(file("\n \n"))


def test_points_without_elements_may_coincide(file):
    clouds = read(file("2\n\nX 0 0 0\nX 0 0 0\n"))
    assert clouds.numbers is None


def test_one_atom_is_a_structure(file):
    assert read(file("1\n\nHe 0 0 0\n")).sizes.tolist() == [1]


ATOMS = ["O 0 0 0", "H 0 0 1", "X", "Cl", "nan", "1e999", "1*^-1", "1_0"]
HEADS = ["Properties=species:S:1:pos:R:3", "Properties=", "gdb 1"]
PIECES = st.sampled_from([*ATOMS, *HEADS, *"0123-²\0\t \n\n\n\n"])


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)), st.sampled_from(["stop", "skip"]))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_clouds_or_an_error_of_ours(tmp_path, text, on_problem):
    path = tmp_path / "fuzz.xyz"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        clouds = read(path, on_problem=on_problem)
    except EqflowError:
        return
    assert len(clouds) > 0
    assert clouds.x.isfinite().all()
