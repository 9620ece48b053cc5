"""The pytest plugin in projects of others: clouds by name, tables of failures, nothing else."""

import subprocess
import sys

import pytest

import pytest_eqflow
from eqflow.testing import clouds

pytest_plugins = ["pytester"]

# As strict as a project can be.
STRICT = """
[pytest]
addopts = --strict-markers --strict-config
filterwarnings = error
"""

MODELS = '''
from eqflow.geometry import Segments, centred


def good(x, ptr, h):
    return centred(x, ptr)


def broken(x, ptr, h):
    """Sees the lab in clouds of five points."""
    segments = Segments(ptr)
    five = segments.expand((segments.lengths == 5).to(x))[:, None]
    return centred(x, ptr) * (1 + 0.1 * five * (x > 0))
'''


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with two models, one of them broken."""
    pytester.makeini(STRICT)
    pytester.makepyfile(models=MODELS)
    return pytester


def run(project: pytest.Pytester, *words: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "pytest_eqflow", "-p", "no:cacheprovider", *words)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_the_plugin_knows_the_names_of_the_clouds_without_importing_them(dimension):
    named = [n for n, least in pytest_eqflow.LEAST_DIMENSION.items() if least <= dimension]
    assert named == list(dict(clouds(dimension)))


def test_a_test_runs_on_each_cloud_by_its_name(project):
    project.makepyfile(
        """
        from eqflow.geometry import Clouds
        from eqflow.testing import assert_equivariant
        from models import good

        def test_it(cloud):
            assert isinstance(cloud, Clouds)
            assert_equivariant(good, cloud, "E(3)×S(n)")
        """
    )
    result = run(project, "-v")
    result.assert_outcomes(passed=len(pytest_eqflow.LEAST_DIMENSION))
    result.stdout.fnmatch_lines(["*test_it[[]generic[]] PASSED*", "*test_it[[]c60[]] PASSED*"])


def test_a_broken_model_fails_on_its_clouds_and_the_message_names_them(project):
    project.makepyfile(
        """
        from eqflow.testing import assert_equivariant
        from models import broken

        def test_it(cloud):
            assert_equivariant(broken, cloud, "E(3)×S(n)")
        """
    )
    result = run(project)
    result.assert_outcomes(passed=len(pytest_eqflow.LEAST_DIMENSION) - 3, failed=3)
    result.stdout.fnmatch_lines(["*worst: * of cloud 0 (5 points, from methane)*"])
    result.stdout.fnmatch_lines(["FAILED *test_it[[]methane[]]*"])


def test_the_assertion_prints_a_table_that_names_the_worst_cloud(project):
    project.makepyfile(
        """
        from models import broken, good

        def test_good(assert_equivariant):
            assert_equivariant(good)
            assert_equivariant(good, group="E(3)", output="vector", motions=1)

        def test_broken(assert_equivariant):
            assert_equivariant(broken)

        def test_not_a_point(assert_equivariant, symmetric_clouds):
            assert_equivariant(good, symmetric_clouds["water"], output="point")

        def test_chosen(assert_equivariant, symmetric_clouds):
            few = {name: symmetric_clouds[name] for name in ("water", "benzene")}
            assert_equivariant(broken, few)
        """
    )
    result = run(project)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "FAIL *E(3)×S(n) *rotation *float64 *fails on 3 of 16: generic[[]1], methane, far*",
            "worst: E(3)×S(n), * (5 points): error *",
        ]
    )
    result.stdout.fnmatch_lines(["worst: E(3)×S(n), *, on water (3 points): *"])


def test_dimension_and_clouds_are_chosen_by_option_and_marker(project):
    project.makeini(STRICT + "eqflow_dimension = 2\n")
    project.makepyfile(
        """
        import pytest
        import torch

        def test_plane(cloud):
            assert cloud.dimension == 2

        @pytest.mark.eqflow_clouds("benzene", "methane", dimension=3, dtype=torch.float32)
        def test_two(cloud, symmetric_clouds, assert_equivariant):
            assert cloud.dimension == 3
            assert cloud.x.dtype is torch.float32
            assert list(symmetric_clouds) == ["benzene", "methane"]
            assert_equivariant(lambda x, ptr, h: x, output="point")

        def test_all(symmetric_clouds):
            assert "water" in symmetric_clouds and "methane" not in symmetric_clouds
        """
    )
    run(project).assert_outcomes(passed=11 + 2 + 1, deselected=5 + 14)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("@pytest.mark.eqflow_clouds('benzol')", "names 'benzol'"),
        ("@pytest.mark.eqflow_clouds(dimensions=2)", "expected dimension or dtype"),
        ("@pytest.mark.eqflow_clouds(dimension='flat')", "expected a whole number"),
    ],
)
def test_a_marker_that_makes_no_sense_is_refused(project, line, text):
    project.makepyfile(f"import pytest\n\n{line}\ndef test_it(cloud):\n    pass\n")
    result = run(project)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{text}*"])


def test_a_cloud_of_the_projects_own_is_left_alone(project):
    """A parameter or a fixture of that name hides ours, whatever its values are."""
    project.makeini(STRICT + "eqflow_dimension = 2\n")
    project.makepyfile(
        test_parameter="""
        import pytest

        @pytest.mark.parametrize("cloud", ["stratus", "water", 3])
        def test_it(cloud):
            assert cloud in ("stratus", "water", 3)
        """,
        test_fixture="""
        import pytest

        @pytest.fixture(params=["cumulus", "cirrus"])
        def cloud(request):
            return request.param

        def test_it(cloud):
            assert cloud in ("cumulus", "cirrus")
        """,
    )
    run(project).assert_outcomes(passed=5)


def test_a_project_that_uses_none_of_it_does_not_import_torch(project):
    project.makepyfile(
        """
        import sys

        def test_it():
            assert "pytest_eqflow" in sys.modules
            assert "torch" not in sys.modules
            assert "eqflow" not in sys.modules
        """
    )
    words = ["-p", "pytest_eqflow", "-p", "no:cacheprovider", "-q"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=project.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_plugin_is_announced_to_pytest():
    """As in the project's file: an installed copy may be older than the source."""
    import tomllib
    from pathlib import Path

    root = Path(pytest_eqflow.__file__).parent
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    # One name for both, or `-p pytest_eqflow` beside the installed plugin would be a second one.
    assert project["project"]["entry-points"]["pytest11"] == {"pytest_eqflow": "pytest_eqflow"}
    build = project["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["pytest_eqflow.py"] == "pytest_eqflow.py"
    assert "pytest_eqflow.py" in build["sdist"]["only-include"]
