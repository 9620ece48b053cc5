"""`eqflow check` of a function of one's own, and the table it prints of a run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch

from eqflow.cli.main import main

Captured = pytest.CaptureFixture[str]

MODELS = '''
import torch
from torch import nn

from eqflow.geometry import Segments, centred

NUMBER = 3


def arms(x, ptr, h):
    return centred(x, ptr)


def sideways(x, ptr, h):
    """Wrong for methane alone: it has five points."""
    segments = Segments(ptr)
    five = segments.expand((segments.lengths == 5).to(x))[:, None]
    return centred(x, ptr) * (1 + 0.1 * five * torch.tensor([1.0, 0.0, 0.0]).to(x))


def radius(x, ptr, h):
    return centred(x, ptr).norm(dim=-1)


def area(x, ptr, h):
    y = Segments(ptr).to_dense(centred(x, ptr))
    return torch.linalg.det(y[:, :2]) if y.shape[1] > 1 else y.new_zeros(len(y))


def failing(x, ptr, h):
    raise ValueError("not today")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, ptr, h):
        return self.weight * centred(x, ptr)


network = Network()
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package of models, which is the working folder."""
    (tmp_path / "their_project").mkdir()
    (tmp_path / "their_project" / "__init__.py").write_text("")
    (tmp_path / "their_project" / "models.py").write_text(MODELS)
    (tmp_path / "their_project" / "broken.py").write_text("1 / 0\n")
    (tmp_path / "their_project" / "needing.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "their_project" / "reading.py").write_text("import sys\nsys.no_such_name\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in [name for name in sys.modules if name.split(".")[0] == "their_project"]:
        del sys.modules[name]


def check(name: str, *words: str) -> int:
    return main(["check", f"target=their_project.models:{name}", *words])


def test_a_function_of_another_project_is_measured_on_every_cloud(
    project: Path, capsys: Captured
) -> None:
    assert check("arms", "output=vector", "group=E(3)", "out=check.json") == 0
    text = capsys.readouterr().out
    assert "symmetry of their_project.models:arms, output 'vector'" in text
    assert "all 8 hold" in text
    report = json.loads((project / "check.json").read_text("utf-8"))
    assert report["holds"] is True
    assert {row["dtype"] for row in report["rows"]} == {"float64", "float32"}
    assert {"methane", "c60", "far[1]"} <= {row["cloud"] for row in report["rows"]}


def test_a_broken_function_is_exit_code_4_and_its_worst_cloud_named(
    project: Path, capsys: Captured
) -> None:
    assert check("sideways", "group=E(3)×S(n)", "dtypes=float64", "out=check.json") == 4
    report = json.loads((project / "check.json").read_text("utf-8"))
    assert report["holds"] is False
    failing = [row for row in report["rows"] if not row["holds"]]
    assert {row["cloud"] for row in failing} == {"generic[1]", "methane", "far[1]"}
    assert {row["points"] for row in failing} == {5}
    text = capsys.readouterr().out
    assert "FAIL  E(3)×S(n)  rotation" in text
    assert f"on {report['worst']['cloud']} (5 points)" in text
    assert "fails on 3 of 16: generic[1], methane, far[1]" in text


def test_several_groups_and_words_are_divided_by_commas(project: Path, capsys: Captured) -> None:
    words = ("output=scalar", "dimension=2", "group=SE(2),S(n), mirror,scale")
    assert check("radius", *words) == 0
    assert "homogeneous of degree 1" in capsys.readouterr().out
    assert check("area", *words[:2], "group=[SE(2),mirror,scale]") == 0
    text = capsys.readouterr().out
    assert "chiral" in text
    assert "homogeneous of degree 2" in text


def test_a_torch_module_is_measured_in_both_types(project: Path, capsys: Captured) -> None:
    assert check("network", "group=E(3)") == 0
    text = capsys.readouterr().out
    assert "float64" in text
    assert "float32" in text


def test_what_raises_is_told_and_is_no_bug(project: Path, capsys: Captured) -> None:
    assert check("failing", "out=check.json") == 4
    assert "raised: ValueError: not today" in capsys.readouterr().out
    rows = json.loads((project / "check.json").read_text("utf-8"))["rows"]
    assert all(row["error"] is None for row in rows)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("arms", "expected package.module:function"),
        ("their_project.models.arms", "expected package.module:function"),
        ("their_project.models:arms()", "expected package.module:function"),
        ("../models.py:arms", "expected package.module:function"),
        ("their_project.model:arms", "no module 'their_project.model'"),
        ("nobodys_project:arms", "no module 'nobodys_project'"),
        ("their_project.models:arm", "did you mean arms"),
        ("their_project.models:NUMBER", "is a int, expected a function"),
        ("their_project.models:Network", "is a class, expected a function"),
        ("their_project.broken:fn", "raised ZeroDivisionError: division by zero"),
        ("their_project.needing:fn", "raised ModuleNotFoundError: No module named 'a_package"),
        ("their_project.reading:fn", "raised AttributeError"),
    ],
)
def test_a_name_of_nothing_is_a_usage_error(
    project: Path, capsys: Captured, target: str, text: str
) -> None:
    assert main(["check", f"target={target}", "out=new/check.json"]) == 2
    assert text in capsys.readouterr().err
    assert not (project / "new").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["group=E(4)"], "Pass group='E(3)'"),
        (["group=mirorr"], "'mirror'"),
        (["group=,"], "groups: found none"),
        (["output=vectr"], "Did you mean 'vector'"),
        (["dimension=0"], "dimension: found 0"),
        (["threads=0"], "threads: found 0"),
        (["dtypes=float16"], "dtypes: found 'float16'"),
        (["tolerance=0"], "tolerance: found 0"),
        (["out=check.txt"], "expected .json"),
        (["run=somewhere"], "either run= or target="),
    ],
)
def test_words_that_make_no_sense_are_refused(
    project: Path, capsys: Captured, words: list[str], text: str
) -> None:
    assert check("arms", *words) == 2
    assert text in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused(project: Path, capsys: Captured) -> None:
    (project / "file").write_text("")
    assert check("arms", "out=file/check.json") == 6
    assert "symmetry of" not in capsys.readouterr().out


# Runs.


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    assert tiny.train(tiny.particles(folder / "points.npy"), folder / "run") == 0
    return folder / "run"


def test_a_run_has_its_laws_and_a_table_of_clouds(
    planar: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "check.json"
    words = ["structures=3", "group=E(2)×S(n),mirror,scale,continuity", f"out={out}"]
    assert main(["check", f"run={planar}", *words]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text("utf-8"))}
    assert rows["velocity: rotations and reflections, O(2)"]["cloud"].startswith("structure ")
    turned = rows["velocity: rotation of E(2)×S(n)"]
    assert (turned["tolerance"], turned["dtype"], turned["holds"]) == (1e-10, "float64", True)
    assert turned["cloud"]
    assert rows["velocity: mirror: reflection"]["tolerance"] is None
    assert rows["velocity: mirror: reflection"]["note"] == "achiral"
    assert rows["velocity: continuity: perturbed"]["note"] == "continuous"
    text = capsys.readouterr().out
    assert "worst: structure" in text
    assert "worst: E(2)×S(n)" in text


def test_a_broken_run_names_the_worst_structure_and_cloud(
    planar: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from eqflow.nn import EGNNField

    forward = EGNNField.forward

    def broken(self: EGNNField, t, x, edges, context=None):  # type: ignore[no-untyped-def]
        return forward(self, t, x, edges, context) + torch.tensor([0.1, 0.0], dtype=x.dtype) * x

    monkeypatch.setattr(EGNNField, "forward", broken)
    assert main(["check", f"run={planar}", "structures=3"]) == 4
    text = capsys.readouterr().out
    assert "FAIL velocity: translations, T(2)" in text
    assert any(line.startswith("FAIL  E(2)") for line in text.splitlines())
    assert "fails on " in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["group=E(3)"], "Pass group='E(2)'"),
        (["output=scalar"], "output: only for target="),
        (["dimension=2"], "dimension: only for target="),
        (["dtypes=double"], "dtypes: found 'double'"),
    ],
)
def test_a_run_refuses_words_of_a_target(
    planar: Path, capsys: Captured, words: list[str], text: str
) -> None:
    assert main(["check", f"run={planar}", *words]) == 2
    assert text in capsys.readouterr().err
