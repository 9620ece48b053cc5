"""SDF: both versions, bad records by line, and agreement with RDKit."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem

from eqflow.data import read, read_report, write, write_molecules
from eqflow.errors import (
    DataError,
    EmptyData,
    EqflowError,
    MalformedRecord,
    NumericalError,
    UnknownElement,
    UsageError,
)
from eqflow.geometry import Clouds

WATER = """water
     eqflow         3D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1000 O   0  0
    0.0000    0.7000   -0.4000 H   0  0
    0.0000   -0.7000   -0.4000 H   0  0
  1  2  1  0
  1  3  1  0
M  END
> <energy>
-76.4

$$$$
"""
LENGTH = WATER.count("\n")


@pytest.fixture
def file(tmp_path):
    def make(text: str, name: str = "a.sdf"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="module")
def caffeine():
    molecule = Chem.AddHs(Chem.MolFromSmiles("Cn1c(=O)c2c(ncn2C)n(C)c1=O"))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    return molecule


@pytest.mark.parametrize("version", ["V2000", "V3000"])
def test_molecules_of_rdkit_are_read_with_all_their_hydrogens(file, caffeine, version):
    block = Chem.MolToMolBlock(caffeine, forceV3000=version == "V3000")
    assert version in block
    clouds = read(file(f"{block}$$$$\n" * 2))
    expected = Clouds.from_rdkit([caffeine] * 2)
    assert torch.equal(clouds.numbers, expected.numbers)
    torch.testing.assert_close(clouds.x, expected.x, rtol=0, atol=6e-5)


def test_the_source_is_the_first_line_of_the_record(file):
    clouds = read(file(WATER * 3))
    lines = [int(source.rsplit(":", 1)[1]) for source in clouds.source]
    assert lines == [1, 1 + LENGTH, 1 + 2 * LENGTH]


def test_a_last_record_without_its_end_is_read(file):
    assert len(read(file(WATER + WATER.split("> <")[0]))) == 2


def test_rdkit_reads_what_is_written(tmp_path):
    clouds = Clouds(
        torch.randn(1200, 3).double(), torch.tensor([0, 1, 1200]), torch.ones(1200).long()
    )
    write(clouds, tmp_path / "a.sdf")
    molecules = list(Chem.SDMolSupplier(str(tmp_path / "a.sdf"), sanitize=False, removeHs=False))
    back = Clouds.from_rdkit(molecules)
    torch.testing.assert_close(back.x, clouds.x, rtol=0, atol=1e-17)
    assert torch.equal(back.ptr, clouds.ptr)


ATOMS = "    0.0000    0.0000    0.1000 {}\n    0.0000    0.7000   -0.4000 {}\n"
PAIR = "\n     eqflow         3D\n\n  2  {}  0  0  0  0  0  0  0  0999 V2000\n" + ATOMS
V3000 = """
     eqflow         3D

  0  0  0  0  0  0  0  0  0  0999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 1 0 0 0 0
M  V30 BEGIN ATOM
M  V30 1 N 0 0 0 0 CHG={}
M  V30 END ATOM
M  V30 END CTAB
M  END
"""

CHARGED = {
    "M  CHG": (PAIR.format(0, "O  ", "H  ") + "M  CHG  2   1  -1   2   1\nM  END\n", [-1, 1]),
    "atom block": (PAIR.format(0, "O   0  5", "H   0  3") + "M  END\n", [-1, 1]),
    "version 3000": (V3000.format(-3), [-3]),
    "all zero": (PAIR.format(0, "O  ", "H  ") + "M  CHG  1   1   0\nM  END\n", None),
    "none": (PAIR.format(0, "O  ", "H  ") + "M  END\n", None),
    "later in a field": (
        PAIR.format(0, "O  ", "H  ") + "M  END\n> <note>\nM  CHG  1   1  99\n\n",
        None,
    ),
}


@pytest.mark.parametrize("case", CHARGED)
def test_formal_charges_are_read_and_none_where_all_are_zero(file, case):
    text, expected = CHARGED[case]
    charges = read(file(f"{text}$$$$\n")).charges
    assert (None if charges is None else charges.tolist()) == expected
    if expected:
        both = read(file(f"{WATER}{text}$$$$\n"))
        assert both.charges.tolist() == [0, 0, 0, *expected]


AS_THEY_ARE = {
    "too many bonds": (PAIR.format(1, "O  ", "C  ") + "  1  2  3  0\n", [8, 6]),
    "aromatic without a ring": (PAIR.format(1, "C  ", "C  ") + "  1  2  4  0\n", [6, 6]),
    "a radical": (PAIR.format(1, "O  ", "H  ") + "  1  2  1  0\nM  RAD  1   1   2\n", [8, 1]),
    "isotopes": (PAIR.format(1, "O  ", "D  ") + "  1  2  1  0\nM  ISO  1   1  18\n", [8, 1]),
    "fragments": (PAIR.format(0, "Na ", "Cl ") + "M  CHG  2   1   1   2  -1\n", [11, 17]),
    "a group": (PAIR.format(0, "R# ", "C  "), [0, 6]),
    "one atom": (V3000.format(0).removesuffix("M  END\n"), [7]),
}


@pytest.mark.parametrize("case", AS_THEY_ARE)
def test_any_molecule_is_read_as_it_is_whatever_chemistry_says(file, case):
    text, expected = AS_THEY_ARE[case]
    (cloud,) = read(file(f"{text}M  END\n$$$$\n"))
    assert cloud.numbers.tolist() == expected
    assert cloud.total_charges.tolist() == [0]


BAD = {
    "charge too large": (
        PAIR.format(0, "O  ", "H  ") + "M  CHG  1   2 256\nM  END\n$$$$\n",
        MalformedRecord,
        6,
        "from -15 to 15",
    ),
    "charge of version 3000": (V3000.format(1.5) + "$$$$\n", MalformedRecord, 7, "from -15 to 15"),
    "charge no atom can have": (
        PAIR.format(0, "O  ", "H  ") + "M  CHG  1   2   2\nM  END\n$$$$\n",
        DataError,
        0,
        "H of charge 2",
    ),
    "a bond twice": (
        PAIR.format(2, "C  ", "C  ") + 2 * "  1  2  1  0\n" + "M  END\n$$$$\n",
        MalformedRecord,
        0,
        "each bond once",
    ),
    "a bond to an atom that is not there": (
        PAIR.format(1, "C  ", "C  ") + "  1  3  1  0\nM  END\n$$$$\n",
        MalformedRecord,
        0,
        "between two of them",
    ),
    "charge of an atom that is not there": (
        PAIR.format(0, "O  ", "H  ") + "M  CHG  1   3   1\nM  END\n$$$$\n",
        MalformedRecord,
        0,
        "cannot read",
    ),
    "counts": (WATER.replace("  3  2", "  x  2"), MalformedRecord, 3, "counts line"),
    "zero atoms": (
        "\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n",
        MalformedRecord,
        0,
        "0 atoms",
    ),
    "coordinate": (WATER.replace("0.7000 ", "0,7000 ", 1), MalformedRecord, 5, "numbers x, y, z"),
    "element": (WATER.replace("O  ", "Oq ", 1), UnknownElement, 4, "nearest"),
    "short": ("water\n$$$$\n", MalformedRecord, 0, "2 lines"),
    "cut off": (WATER.replace("M  END\n", ""), MalformedRecord, 0, "cut off"),
    "too many atoms": (WATER.replace("  3  2", "  9  2"), MalformedRecord, 7, "numbers x, y, z"),
    "coincident": (WATER.replace("-0.7000", " 0.7000"), DataError, 0, "atom 1 "),
    "absurd": (WATER.replace("   -0.7000", "70000.0000"), DataError, 0, "unit"),
    "drawing": (
        WATER.replace("3D", "2D").replace("0.1000", "0.0000").replace("-0.4000", " 0.0000"),
        MalformedRecord,
        0,
        "2-D drawing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_by_file_and_line(file, case, capfd):
    text, error, line, words = BAD[case]
    path = file(WATER + text + WATER)
    with pytest.raises(error, match="expected") as caught:
        read(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{path}:{LENGTH + 1 + line}: ")
    assert words in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("case", BAD)
def test_skipping_leaves_out_the_bad_record_only_and_lists_it(file, case):
    clouds, skipped = read_report(file(WATER + BAD[case][0] + WATER), on_problem="skip")
    assert len(clouds) == 2
    assert len(skipped) == 1


def test_a_planar_molecule_marked_3d_is_a_structure_and_a_drawing_is_planar(file):
    drawing = BAD["drawing"][0]
    assert read(file(drawing), dimension=2).x.shape == (3, 2)
    assert read(file(drawing.replace("2D", "3D"))).x.shape == (3, 3)


def test_no_structure_left_is_empty_data(file):
    with pytest.raises(EmptyData, match="found 1 structures, 1 of them unusable"):
        read(file(BAD["counts"][0]), on_problem="skip")
    with pytest.raises(EmptyData, match="found 0 structures"):
        read(file("\n\n"))


def test_molecules_are_written_with_bonds_charges_and_properties(tmp_path, caffeine):
    acetate = Chem.AddHs(Chem.MolFromSmiles("CC(=O)[O-]"))
    AllChem.EmbedMolecule(acetate, randomSeed=1)
    acetate.SetProp("from", "a test")
    path = tmp_path / "a.sdf"
    assert write_molecules(iter([caffeine, acetate]), path) == 2
    back = list(Chem.SDMolSupplier(str(path), removeHs=False))
    for ours, theirs in zip(back, (caffeine, acetate), strict=True):
        assert Chem.MolToSmiles(ours) == Chem.MolToSmiles(theirs)
        assert ours.GetPropsAsDict() == theirs.GetPropsAsDict()
    clouds, expected = read(path), Clouds.from_rdkit([caffeine, acetate])
    torch.testing.assert_close(clouds.x, expected.x, rtol=0, atol=1e-17)
    assert torch.equal(clouds.numbers, expected.numbers)
    assert torch.equal(clouds.charges, expected.charges)


def test_molecules_that_cannot_be_written_leave_the_file_as_it_was(tmp_path, caffeine):
    path = tmp_path / "a.sdf"
    write_molecules([caffeine], path)
    before = path.read_bytes()
    lost = Chem.Mol(caffeine)
    lost.GetConformer().SetAtomPosition(3, (0.0, float("nan"), 0.0))
    for wrong, error, words in [
        ([], EmptyData, "0 molecules"),
        ([caffeine, Chem.Mol()], EmptyData, "molecule 1: found no atoms"),
        ([caffeine, Chem.MolFromSmiles("C")], DataError, "molecule 1: found no conformer"),
        ([caffeine, lost], NumericalError, "molecule 1: .*not finite"),
    ]:
        with pytest.raises(error, match=words):
            write_molecules(wrong, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match=r"expected \.sdf"):
        write_molecules([caffeine], tmp_path / "a.xyz")


PIECES = st.sampled_from(
    [
        *WATER.splitlines(keepends=True),
        "M  V30 BEGIN CTAB\n",
        "M  V30 COUNTS 1 0 0 0 0\n",
        "M  V30 BEGIN ATOM\n",
        "M  V30 1 C 0 0 nan 0\n",
        "M  V30 1 C 0 0 1 0\n",
        "M  V30 1 C 0 0 1 0 CHG=-2\n",
        "M  CHG  1   1  -1\n",
        "M  CHG  1   2 300\n",
        "M  V30 END ATOM\nM  V30 END CTAB\n",
        "  0  0  0  0  0  0  0  0  0  0999 V3000\n",
        "M  ",
        "\t",
        "-1 ",
        "²",
    ]
)


@given(
    st.one_of(
        st.text(),
        st.lists(PIECES, max_size=20).map("".join),
        st.tuples(st.integers(0, len(WATER)), st.text(max_size=4), st.integers(0, 4)).map(
            lambda cut: WATER[: cut[0]] + cut[1] + WATER[cut[0] + cut[2] :]
        ),
    ),
    st.sampled_from(["stop", "skip"]),
)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_clouds_or_an_error_of_ours(tmp_path, text, on_problem):
    path = tmp_path / "fuzz.sdf"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        clouds = read(path, on_problem=on_problem)
    except EqflowError:
        return
    assert len(clouds) > 0
    assert clouds.x.isfinite().all()
