"""Every error ends a command with the exit code that reliability promises for its kind."""

import inspect

import pytest

from eqflow import errors
from eqflow.errors import EqflowError, ExitCode

CODES = {
    "UsageError": 2,
    "ShapeError": 2,
    "NoDensity": 2,
    "DegenerateFrame": 4,
    "DataError": 3,
    "MalformedRecord": 3,
    "UnknownElement": 3,
    "EmptyData": 3,
    "CheckpointError": 3,
    "NumericalError": 4,
    "NotCentered": 4,
    "SolverFailed": 4,
    "MemoryExhausted": 5,
    "StorageError": 6,
    "ProcessLost": 143,
}


def defined():
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, EqflowError)}


def test_every_error_is_in_the_table():
    assert set(defined()) == {*CODES, "EqflowError"}


@pytest.mark.parametrize("name", CODES)
def test_an_error_has_its_exit_code_and_keeps_its_message(name):
    error = defined()[name]("where: found this, expected that.")
    assert error.exit_code == CODES[name]
    assert str(error) == "where: found this, expected that."


def test_the_exit_codes_are_the_published_ones():
    published = {"DONE": 0, "BUG": 1, "USAGE": 2, "DATA": 3, "NUMERICAL": 4, "MEMORY": 5}
    published |= {"STORAGE": 6, "PARTIAL": 7, "INTERRUPTED": 130, "TERMINATED": 143}
    assert {code.name: code.value for code in ExitCode} == published


def test_shape_errors_can_be_caught_as_value_errors():
    assert issubclass(errors.ShapeError, ValueError)
