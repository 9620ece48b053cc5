"""The report holds for symmetric functions, and names kind and cloud where one is broken."""

import copy
import json
import math

import pytest
import torch
from e3nn import o3
from tolerances import TOLERANCE
from torch import nn

from eqflow.errors import ShapeError, StorageError, UsageError
from eqflow.geometry import Clouds, Segments, centred
from eqflow.testing import clouds, symmetry_report
from eqflow.testing.questions import in_dtype

SHAPES = dict(clouds())
FEW = {name: SHAPES[name] for name in ("generic", "water", "benzene", "methane", "one_point")}
FLAT = dict(clouds(2))["water"]
FLOAT64 = (torch.float64,)


def arms(x, ptr, h):
    return centred(x, ptr)


def moment(x, ptr, h):
    """The second moments of each cloud, a tensor of order two in one row."""
    y = centred(x, ptr)
    return Segments(ptr).mean((y[:, :, None] * y[:, None, :]).flatten(1))


def quadrupole(x, ptr, h):
    y = centred(x, ptr)
    return Segments(ptr).sum(o3.spherical_harmonics(2, y, normalize=False))


def lines(report):
    return {(line.worst.group, line.worst.kind, line.worst.dtype): line for line in report.lines}


@pytest.mark.parametrize(
    ("fn", "output"),
    [
        (arms, "vector"),
        (lambda x, ptr, h: x, "point"),
        (lambda x, ptr, h: arms(x, ptr, h).norm(dim=-1), "scalar"),
        (moment, "tensor(2)"),
        (quadrupole, "1x2e"),
        (quadrupole, o3.Irreps("2e")),
    ],
)
def test_a_symmetric_function_holds_on_every_cloud_in_both_types(fn, output):
    report = symmetry_report(fn, "E(3)×S(n)", output, motions=2)
    assert report.holds, str(report)
    assert {row.dtype for row in report.rows} == {"float64", "float32"}
    assert {row.cloud.split("[")[0] for row in report.rows} == set(SHAPES)
    for row in report.rows:
        assert row.tolerance == TOLERANCE[getattr(torch, row.dtype)]
    assert len(report.rows) == 2 * len(SHAPES) * 5


@pytest.mark.parametrize("family", ["T", "O", "SO", "E", "SE"])
@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_every_group_works_in_every_dimension(family, dimension):
    groups = (f"{family}({dimension})×S(n)", f"{family}({dimension})xS(n)")
    report = symmetry_report(arms, groups, dimension=dimension, motions=1)
    assert report.holds, str(report)


def test_both_ways_to_write_a_product_measure_the_same():
    one, other = (
        symmetry_report(arms, group, clouds=FEW, dtypes=FLOAT64)
        for group in ("E(3)×S(n)", "E(3) x S(n)")
    )
    assert [row.error for row in one.rows] == [row.error for row in other.rows]
    kinds = [row.kind for row in one.of(cloud="water")]
    assert kinds == ["translation", "rotation", "reflection", "combined", "permutation"]


def lab_frame_sign(x, ptr, h):
    """Arms with a sign that is read off the lab's first axis; planar clouds turn it over."""
    y = centred(x, ptr)
    cubes = Segments(ptr).sum(y[:, :1] ** 3)
    return Segments(ptr).expand(torch.sign(cubes + 1e-3)) * y


def batch_mixing(x, ptr, h):
    return x - x.mean(0)


def order_dependent(x, ptr, h):
    return centred(x, ptr) * (1 + Segments(ptr).place[:, None].to(x))


def leaking(x, ptr, h):
    return centred(x, ptr) + 1e-3 * x


@pytest.mark.parametrize(
    ("fn", "failing", "holding"),
    [
        (lab_frame_sign, {"rotation", "reflection"}, {"translation", "permutation"}),
        (batch_mixing, {"alone and beside another"}, {"permutation"}),
        (order_dependent, {"permutation"}, {"translation", "rotation", "reflection"}),
        (leaking, {"translation", "combined"}, {"rotation", "reflection", "permutation"}),
    ],
)
def test_a_broken_function_fails_in_its_own_way(fn, failing, holding):
    found = {"generic": SHAPES["generic"][:1], "ammonia": SHAPES["ammonia"]}
    report = symmetry_report(fn, clouds=found, dtypes=FLOAT64)
    assert not report.holds
    broken = {line.worst.kind for line in report.lines if line.failing}
    assert broken >= failing
    assert not broken & holding
    assert "FAIL" in str(report)


@pytest.mark.parametrize("culprit", list(FEW))
def test_the_worst_cloud_is_named(culprit):
    """Only clouds with as many points as the culprit see where they are."""
    size = int(FEW[culprit].sizes[-1])

    def fn(x, ptr, h):
        segments = Segments(ptr)
        its = segments.expand((segments.lengths == size).to(x))[:, None]
        return centred(x, ptr) + 1e-4 * its * x

    named = {name: FEW[name] for name in FEW if name == culprit or size not in FEW[name].sizes}
    report = symmetry_report(fn, "T(3)", clouds=named, dtypes=FLOAT64)
    expected = "generic[1]" if culprit == "generic" else culprit
    assert report.worst.cloud == expected
    assert {row.cloud for row in report.failures} == {expected}
    assert report.worst.points == size
    text = str(report)
    assert f"on {expected} ({size} points)" in text
    assert f"fails on 1 of {len(named)}: {expected}" in text


def test_what_raises_on_a_cloud_is_a_row_and_not_the_end():
    def fn(x, ptr, h):
        if len(x) == 3:
            raise ValueError("three is too few\nfor me")
        return centred(x, ptr)

    report = symmetry_report(fn, clouds=FEW)
    assert {row.cloud for row in report.failures} == {"water"}
    for row in report.of(cloud="water"):
        assert row.note == "raised: ValueError: three is too few"
        assert row.error == math.inf
    assert [row.kind for row in report.of(cloud="water")] == [
        row.kind for row in report.of(cloud="methane")
    ]
    assert all(row.holds for row in report.of("mirror", cloud="water"))
    assert "raised: ValueError" in str(report)


def test_what_raises_for_some_motions_fails_in_those_alone():
    def fn(x, ptr, h):
        if x.abs().max() > 1.5:
            raise RuntimeError("too far away")
        return centred(x, ptr)

    report = symmetry_report(fn, "E(3)", clouds={"water": SHAPES["water"]}, dtypes=FLOAT64, seed=1)
    held = {row.kind: row.holds for row in report.rows}
    assert held == {"translation": False, "rotation": True, "reflection": True, "combined": False}


def test_a_wrong_shape_is_a_row_that_says_what_was_expected():
    report = symmetry_report(lambda x, ptr, h: x[:, :2], clouds=FEW, dtypes=FLOAT64)
    assert not report.holds
    assert "expected (3, 3) for the points" in report.of(cloud="water")[0].note


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_that_is_not_finite_is_a_row(bad):
    def fn(x, ptr, h):
        return torch.where(h > 7.5, bad, centred(x, ptr))

    report = symmetry_report(fn, clouds={n: FEW[n] for n in ("water", "methane")}, dtypes=FLOAT64)
    assert {row.cloud for row in report.failures} == {"water"}
    assert report.worst.note == "the output is not finite"


def test_what_centres_its_input_in_place_moves_no_cloud():
    batch = SHAPES["water"]
    before = batch.x.clone()

    def fn(x, ptr, h):
        x -= x.mean(0)
        return x

    assert symmetry_report(fn, "E(3)×S(n)", clouds=batch).holds
    assert torch.equal(batch.x, before)


# Modules.


class Layer(nn.Module):
    """Arms, weighted by a network of their length."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x, ptr, h):
        y = centred(x, ptr)
        return y * self.network(y.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_is_measured_in_both_types_and_left_as_it_was(dtype):
    layer = Layer().to(dtype)
    before = copy.deepcopy(layer.state_dict())
    for fn in (layer, layer.forward):
        report = symmetry_report(fn, "E(3)×S(n)", clouds=FEW)
        assert report.holds, str(report)
        assert {row.dtype for row in report.rows} == {"float64", "float32"}
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert next(layer.parameters()).dtype is dtype
    assert in_dtype(layer, dtype) is layer


def test_a_function_that_knows_one_type_says_so_in_rows():
    layer = Layer()
    report = symmetry_report(lambda x, ptr, h: layer(x, ptr, h), "T(3)", clouds=FEW)
    assert {row.dtype for row in report.failures} == {"float64"}
    assert all(row.note.startswith("raised: RuntimeError") for row in report.failures)
    assert symmetry_report(
        lambda x, ptr, h: layer(x, ptr, h), "T(3)", clouds=FEW, dtypes=[torch.float32]
    ).holds


def test_dropout_that_is_on_is_found():
    layer = nn.Sequential(nn.Dropout(0.5))

    def fn(x, ptr, h):
        return layer(centred(x, ptr))

    assert not symmetry_report(fn, "T(3)", clouds=FEW, dtypes=FLOAT64).holds
    layer.eval()
    assert symmetry_report(fn, "T(3)", clouds=FEW, dtypes=FLOAT64).holds


# Mirror, scale and continuity as rows.


def test_mirror_and_scale_are_information_and_never_fail():
    def volume(x, ptr, h):
        y = Segments(ptr).to_dense(centred(x, ptr))
        return torch.linalg.det(y[:, :3]) if y.shape[1] > 2 else y.new_zeros(len(y))

    groups = ("SE(3)", "mirror", "scale")
    report = symmetry_report(volume, groups, "scalar", clouds=FEW, dtypes=FLOAT64)
    assert report.holds
    assert report.of("mirror", cloud="generic")[0].note.startswith("chiral")
    assert report.of("mirror", cloud="benzene")[0].note == "achiral"
    assert report.of("scale", cloud="generic")[0].note == "homogeneous of degree 3"
    text = str(report)
    assert "chiral: mirror images differ by 2" in text
    assert "homogeneous of degree 3" in text
    assert report.worst.group == "SE(3)"


def test_continuity_fails_where_it_is_asked_for():
    def farthest(x, ptr, h):
        y = Segments(ptr).to_dense(centred(x, ptr))
        return y[torch.arange(len(y)), y.norm(dim=-1).argmax(1)]

    named = {name: SHAPES[name] for name in ("generic", "methane", "benzene")}
    report = symmetry_report(farthest, "continuity", clouds=named, dtypes=FLOAT64)
    assert {row.cloud for row in report.failures} == {"methane", "benzene"}
    assert report.of(cloud="methane")[0].note.startswith("jumps by")
    assert report.of(cloud="generic")[0].note == "continuous"


# What is asked, and what is written.


def test_by_default_all_that_is_cheap_is_measured():
    report = symmetry_report(arms, dimension=2)
    groups = list(dict.fromkeys(row.group for row in report.rows))
    assert groups == ["E(2)", "S(n)", "batch", "mirror", "scale"]


def test_clouds_may_be_a_mapping_pairs_or_one_batch():
    for given in (FEW, list(FEW.items()), SHAPES["generic"]):
        assert symmetry_report(arms, "E(3)", clouds=given, dtypes=FLOAT64).holds
    plane = dict(clouds(2))
    assert symmetry_report(arms, clouds=plane, dtypes=FLOAT64).rows[0].group == "E(2)"


def test_tolerances_may_be_set_for_one_type_or_all():
    wide = symmetry_report(leaking, "T(3)", clouds=FEW, tolerance=1e3)
    assert wide.holds
    mixed = symmetry_report(leaking, "T(3)", clouds=FEW, tolerance={torch.float32: 1e3})
    assert {row.dtype for row in mixed.failures} == {"float64"}


def test_the_report_is_a_function_of_the_seed():
    reports = [
        symmetry_report(leaking, clouds=FEW, dtypes=FLOAT64, seed=seed).to_json()
        for seed in (3, 3, 4)
    ]
    assert reports[0] == reports[1] != reports[2]


def test_json_has_every_row_and_no_infinity(tmp_path):
    report = symmetry_report(lambda x, ptr, h: x / 0, clouds=FEW, name="division")
    report.write(tmp_path / "report.json")
    plain = json.loads(
        (tmp_path / "report.json").read_text("utf-8"), parse_constant=lambda word: pytest.fail(word)
    )
    assert plain["name"] == "division"
    assert plain["holds"] is False
    assert len(plain["rows"]) == len(report.rows)
    assert plain["worst"]["error"] is None
    assert plain["rows"][0]["cloud"].startswith("generic")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        report.write(tmp_path / "file" / "report.json")


def test_the_columns_of_the_table_are_aligned():
    text = str(symmetry_report(arms, clouds=FEW)).splitlines()
    table = [line for line in text if line.startswith(("ok", "info", "FAIL", "     "))]
    column = table[0].index("dtype")
    assert all(line[column : column + 5] == "float" for line in table[1:])
    column = table[0].index("worst cloud")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in table[1:])
    assert len(table) == 1 + 2 * 8


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ({"groups": "E(4)"}, ShapeError, r"Pass group='E\(3\)'"),
        ({"groups": "E3"}, UsageError, "'mirror'"),
        ({"groups": "mirorr"}, UsageError, "'mirror'"),
        ({"groups": []}, UsageError, "groups: found none"),
        ({"groups": "E(3)×O(3)"}, UsageError, "a product of 2 groups"),
        ({"groups": "S(n)×S(n)"}, UsageError, "a product of 2 groups"),
        ({"groups": "E(3)×"}, UsageError, "expected one of"),
        ({"output": "vectr"}, UsageError, "Did you mean 'vector'"),
        ({"clouds": {}}, UsageError, "clouds: found none"),
        ({"clouds": [torch.zeros(3, 3)]}, UsageError, "expected pairs of a name"),
        (
            {"clouds": {"a": SHAPES["water"], "b": FLAT}},
            UsageError,
            r"\[2, 3\]",
        ),
        ({"dtypes": [torch.bfloat16]}, UsageError, "tolerance"),
        ({"dtypes": torch.float64}, UsageError, "dtypes: found torch.float64, expected a sequence"),
        ({"dtypes": ()}, UsageError, r"dtypes: found \(\), expected .* at least one"),
        ({"dtypes": ["float64"]}, UsageError, r"dtypes: found \['float64'\]"),
        ({"groups": 3}, UsageError, "groups: found 3, expected a string"),
        ({"groups": ["E(3)", 3]}, UsageError, r"groups: found \['E\(3\)', 3\]"),
        ({"tolerance": "x"}, UsageError, "tolerance: found 'x' for torch.float64"),
        ({"tolerance": {torch.float32: math.nan}}, UsageError, "found nan for torch.float32"),
        ({"tolerance": -1}, UsageError, "found -1 for torch.float64, expected a number"),
        ({"motions": 0}, UsageError, "at least 1"),
        ({"motions": "a"}, UsageError, "motions: found 'a'"),
        ({"fn": 3}, UsageError, "found a int"),
    ],
)
def test_what_makes_no_sense_is_refused(words, error, text):
    with pytest.raises(error, match=text):
        symmetry_report(**{"fn": arms, **words})


def test_a_path_is_made_a_function_by_the_loader(tmp_path):
    asked = []

    def loader(path):
        asked.append(path)
        return arms

    assert symmetry_report(tmp_path, "E(3)", clouds=FEW, loader=loader).holds
    assert asked == [tmp_path]


def test_a_batch_without_clouds_has_nothing_to_miss():
    empty = Clouds(torch.zeros(0, 3).double(), torch.tensor([0]))
    report = symmetry_report(arms, ("E(3)", "batch"), clouds=empty, dtypes=FLOAT64)
    assert report.holds, str(report)


def test_a_tolerance_of_no_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="tolerance: found the key 'float64'"):
        symmetry_report(leaking, "T(3)", clouds=FEW, tolerance={"float64": 1e-30})
