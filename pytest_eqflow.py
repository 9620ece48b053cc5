"""The pytest plugin of eqflow: clouds by name as parameters, and an assertion over all of them.

    def test_my_layer_turns_with_its_input(cloud):
        assert_equivariant(layer, cloud, group="E(3)×S(n)", output="vector")

    def test_my_model_is_equivariant(assert_equivariant):
        assert_equivariant(model, output="vector")  # on every cloud; a table where one fails

Fixtures are `cloud`, each of `eqflow.testing.clouds()` in turn, its name in the test's name;
`symmetric_clouds`, all of them by name; and `assert_equivariant`. The dimension is the option
`eqflow_dimension` of the ini file, 3 by default; the marker `eqflow_clouds("benzene", dimension=2,
dtype=torch.float32)` chooses for one test.

It lies beside the package because pytest imports it in every project where eqflow is installed: it
imports nothing but pytest, and torch and eqflow only for a test that asks for a fixture. It asserts
nothing itself: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from eqflow.geometry import Clouds

# The names of `eqflow.testing.clouds()`, and the fewest coordinates in which each exists: to name
# tests costs no import. A test of eqflow holds them together.
LEAST_DIMENSION = {
    "generic": 1,
    "pyridine": 2,
    "water": 2,
    "ammonia": 3,
    "benzene": 2,
    "square": 2,
    "methane": 3,
    "sf6": 3,
    "co2": 1,
    "icosahedron": 3,
    "c60": 3,
    "one_point": 1,
    "two_points": 1,
    "coincident": 1,
    "far": 1,
    "large": 1,
}
MARKER = "eqflow_clouds"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of the ini file."""
    parser.addini(
        "eqflow_dimension", "coordinates of the clouds that eqflow's fixtures give", default="3"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker, so that strict projects know it."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*names, dimension, dtype): the clouds that eqflow's fixtures give; all of them, "
        "in eqflow_dimension, of torch.float64 where not said",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out clouds that a marker does not name, and those that do not fit the dimension."""
    kept, left = [], []
    for item in items:
        name = _cloud_of(item)
        (kept if name is None or name in _names(item) else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


@pytest.fixture(params=list(LEAST_DIMENSION))
def cloud(request: pytest.FixtureRequest) -> Clouds:
    """Each of `eqflow.testing.clouds()` in turn; messages name it as where the cloud is from."""
    return _clouds(request)[request.param]


@pytest.fixture
def symmetric_clouds(request: pytest.FixtureRequest) -> dict[str, Clouds]:
    """All of `eqflow.testing.clouds()` by name."""
    return _clouds(request)


@pytest.fixture
def assert_equivariant(request: pytest.FixtureRequest) -> Callable[..., None]:
    """An assertion `(fn, batch=None, group=None, output="vector", **options)`.

    It fails with the table of `eqflow.testing.symmetry_report`, whose options it takes, on every
    cloud or on those of `batch`, under `E(d)×S(n)` where no group is given.
    """

    def check(
        fn: Callable[..., Any],
        batch: Any = None,
        group: Any = None,
        output: Any = "vector",
        **options: Any,
    ) -> None:
        __tracebackhide__ = True
        from eqflow.geometry import Clouds
        from eqflow.testing import symmetry_report

        clouds = _clouds(request) if batch is None else batch
        if isinstance(clouds, Clouds):
            named = clouds.source[0] if clouds.source and clouds.source[0] else "batch"
            clouds = {named: clouds}
        dimension = _dimension(request.node)
        if batch is not None:
            clouds = dict(clouds)
            dimension = next(iter(clouds.values())).dimension if clouds else dimension
        groups = f"E({dimension})×S(n)" if group is None else group
        dtypes = options.pop("dtypes", None) or list(
            dict.fromkeys(each.x.dtype for each in clouds.values())
        )
        report = symmetry_report(fn, groups, output, clouds, dtypes=dtypes, **options)
        if not report.holds:
            pytest.fail(str(report), pytrace=False)

    return check


def _clouds(request: pytest.FixtureRequest) -> dict[str, Clouds]:
    from dataclasses import replace

    import torch

    from eqflow.testing import clouds

    options = _options(request.node)
    names = _names(request.node)
    return {
        name: replace(batch, source=(name,) * len(batch))
        for name, batch in clouds(_dimension(request.node), options.get("dtype", torch.float64))
        if name in names
    }


def _names(item: pytest.Item) -> list[str]:
    """The clouds that a test is about."""
    marker = item.get_closest_marker(MARKER)
    chosen = marker.args if marker is not None and marker.args else tuple(LEAST_DIMENSION)
    unknown = [name for name in chosen if name not in LEAST_DIMENSION]
    if unknown:
        raise pytest.UsageError(
            f"{item.nodeid}: the marker {MARKER} names {unknown[0]!r}, expected any of "
            f"{', '.join(LEAST_DIMENSION)}."
        )
    dimension = _dimension(item)
    return [name for name in chosen if LEAST_DIMENSION[name] <= dimension]


def _dimension(item: pytest.Item) -> int:
    found = _options(item).get("dimension", item.config.getini("eqflow_dimension"))
    if not str(found).isdecimal() or int(found) < 1:
        raise pytest.UsageError(
            f"eqflow_dimension: found {found!r}, expected a whole number from 1."
        )
    return int(found)


def _options(item: pytest.Item) -> dict[str, Any]:
    marker = item.get_closest_marker(MARKER)
    options = {} if marker is None else dict(marker.kwargs)
    wrong = set(options) - {"dimension", "dtype"}
    if wrong:
        raise pytest.UsageError(
            f"{item.nodeid}: the marker {MARKER} has {sorted(wrong)}, expected dimension or dtype."
        )
    return options


def _cloud_of(item: pytest.Item) -> str | None:
    """The cloud that a test was given by the fixture here; None of any other test."""
    value = getattr(getattr(item, "callspec", None), "params", {}).get("cloud")
    return value if isinstance(value, str) and value in LEAST_DIMENSION else None
