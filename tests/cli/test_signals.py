"""Signals: the first is noted, the second leaves, and a worker is left to its caller."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from eqflow.chem.workers import Worker
from eqflow.cli.main import main
from eqflow.cli.signals import Received, Signals, exit_code_of

BOTH = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@BOTH
def test_the_first_signal_is_noted_and_the_second_leaves_at_once(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with Signals("this batch") as signals:
        assert not signals.received()
        signal.raise_signal(number)
        assert signals.received()
        assert signals.code() == code
        assert capfd.readouterr().err == "stopping after this batch; once more leaves at once\n"
        with pytest.raises(Received) as caught:
            signal.raise_signal(number)
    assert caught.value.number == number
    assert signal.getsignal(number) == before


@BOTH
def test_where_nothing_can_be_saved_the_first_leaves_at_once(
    number: signal.Signals, code: int
) -> None:
    with Signals("this step", lambda: False) as signals, pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(number)
    assert signals.code() == exit_code_of(getattr(caught.value, "number", None)) == code


@BOTH
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], []])
def test_a_signal_outside_of_any_verb_ends_with_one_line(
    number: signal.Signals,
    code: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def received(*_: object) -> str:
        raise Received(number)

    monkeypatch.setattr("eqflow.cli.main.overview", received)
    monkeypatch.setattr("eqflow.cli.main.help_of", received)
    assert main(words) == code
    start = " ".join(["eqflow", *words[:1]])
    how = "terminated" if code == 143 else "interrupted"
    assert capsys.readouterr().err == f"{start}: {how}\n"


def test_in_another_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with Signals("this batch") as signals:
            found.append((signal.getsignal(signal.SIGTERM), signals.received()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(before, False)]


def test_a_worker_answers_whatever_signals_its_group_gets() -> None:
    with Worker(json.dumps, seconds=60) as worker:
        assert worker([1]).value == "[1]"
        assert worker._process is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker._process.pid, number)
        assert worker([2]).value == "[2]"
