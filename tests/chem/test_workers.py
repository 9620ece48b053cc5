"""A worker answers, says why not, ends what does not end, and is replaced."""

import math
import os
import time
from collections.abc import Iterator

import pytest
from slow_functions import behave

from eqflow.chem.workers import Outcome, Worker
from eqflow.errors import EqflowError, UsageError

DEADLINE = 0.5


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(behave, seconds=DEADLINE) as shared:
        yield shared


@pytest.mark.parametrize("value", [1, 0.1 + 0.2, "a\nü", [1, [2.5]], {"a": None}, True, math.inf])
def test_a_worker_gives_the_value_of_the_function(worker, value):
    assert worker(["give", value]) == Outcome(value)


def test_a_call_past_its_deadline_is_ended_and_the_next_is_answered(worker):
    assert worker(["sleep", 0]).value == 0
    began = time.monotonic()
    assert worker(["sleep", 600]) == Outcome(problem="did not end within 0.5 s")
    assert time.monotonic() - began < 20
    assert worker(["sleep", 0.01]).value == 0.01


def test_a_function_that_holds_the_interpreter_is_ended(worker):
    assert worker(["spin", 10**15]) == Outcome(problem="did not end within 0.5 s")


def test_a_function_that_ends_its_process_is_survived(worker):
    assert worker(["quit", 3]) == Outcome(problem="ended its process")
    assert worker(["give", 0]).value == 0


def test_an_error_is_an_answer_and_what_is_printed_is_none(worker):
    assert worker(["refuse", "no"]) == Outcome(problem="ValueError: no", refused=True)
    process = worker._process
    assert worker(["print", "yes"]).value == "yes"
    assert worker._process is process


def test_a_process_that_was_ended_from_outside_is_replaced(worker):
    worker(["give", 1])
    os.kill(worker._process.pid, 9)
    worker._process.wait()
    assert worker(["give", 2]).problem == "ended its process"
    assert worker(["give", 3]).value == 3


def test_no_process_is_left_behind(worker):
    worker(["give", 1])
    process = worker._process
    worker.close()
    assert process.poll() is not None
    assert worker._process is None


def test_no_process_is_started_where_there_is_no_call():
    with Worker(behave, seconds=30) as idle:
        assert idle._process is None


def test_a_function_that_cannot_be_imported_is_refused():
    with pytest.raises(UsageError, match="cannot import"):
        Worker(lambda value: value, seconds=1)
    with pytest.raises(UsageError, match="deadline"):
        Worker(behave, seconds=0)


def test_a_process_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(behave, "__module__", "no_such_module")
    with (
        Worker(behave, seconds=1) as broken,
        pytest.raises(EqflowError, match=r"did not start.*no_such_module"),
    ):
        broken(["give", 1])
