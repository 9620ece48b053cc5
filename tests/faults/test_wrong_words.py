"""Wrong words to every verb through the real command: exit 2, all of them named, nothing made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import many_commands
from processes import finish, start

MANY = (str(Path(many_commands.__file__)),)
RUN = "run={}/no-run"
OUT = "out={}/made.csv"
DIR = "run.dir={}/made"

# The words of a command, and what its message has to say of them.
WRONG: list[tuple[list[str], list[str]]] = [
    (["train", DIR, "trian.steps=5"], ["trian.steps", "did you mean train.steps"]),
    (["train", DIR, "train.steps=many"], ["train.steps=many", "a whole number"]),
    (["train", DIR, "train.steps=0", "data.source=g2"], ["train.steps: found 0", "at least 1"]),
    (["train", DIR, "model=egn"], ["model has no option 'egn'", "did you mean egnn"]),
    (["train", DIR, "experiment=dw44"], ["experiment has no option", "did you mean dw4"]),
    (["train", DIR, "data.source=g2", "model.lmax=2"], ["model.lmax", "only with model=e3nn"]),
    (["train", DIR, "just-a-word"], ["just-a-word", "expected key=value"]),
    (["train", DIR, "+train.more=1"], ["+train.more=1", "neither added nor removed"]),
    (
        [
            "train",
            DIR,
            "data.source=dw4",
            "train.stps=5",
            "train.batch_size=-1",
            "train.learning_rate=nan",
            "data.validation=0.7",
            "data.test=0.6",
            "solver.method=rk5",
            "data.on_problem=ignore",
        ],
        [
            "train.stps",
            "train.batch_size: found -1",
            "train.learning_rate: found nan",
            "data.validation + data.test",
            "rk5",
            "data.on_problem: found 'ignore'",
        ],
    ),
    (
        ["train", DIR, "experiment=cora", "train.step=5", "model.widht=3"],
        ["train.step", "did you mean train.steps", "model.widht", "model.width"],
    ),
    (["sample", RUN, "out={}/made.doc"], [".doc", ".extxyz"]),
    (["sample", RUN, OUT, "number=5"], ["number", "there is no key"]),
    (["sample", RUN, "out={}/made.xyz", "n=0"], ["found 0", "at least 1"]),
    (
        ["sample", RUN, "out={}/made.xyz", "sizes=3", "formula=H2O"],
        ["sizes and formula contradict each other"],
    ),
    (["score", RUN, OUT, "data.paht=a.xyz"], ["data.paht", "did you mean data.path"]),
    (["score", RUN, OUT, "data.path=a.xyz", "data.on_problem=no"], ["'no'", "stop or skip"]),
    (["check", RUN, "structures=some"], ["structures=some", "a whole number"]),
    (["check", RUN, "toleranse=1"], ["toleranse", "did you mean tolerance"]),
    (
        ["tune", "dir={}/made", "data.source=g2", "space.train.learning_rate=[1,0]"],
        ["space.train.learning_rate", "low < high"],
    ),
    (
        ["tune", "dir={}/made", "space.model.widht=[1,2]", "space.train.steps=[a,b]"],
        ["model.widht", "model.width", "space.train.steps"],
    ),
    (["import-enf", DIR, "weigths=a.npz"], ["weigths", "did you mean weights"]),
    (["demo", "out={}/made", "sed=1"], ["sed", "did you mean seed"]),
    (["trian"], ["there is no verb 'trian'", "did you mean train"]),
]


@pytest.mark.fault(9, "wrong keys, types, ranges and contradictions", "all named, exit 2")
def test_wrong_words_are_all_named_and_nothing_is_made(
    tmp_path: Path, injected: Callable[[], None]
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    every = [[word.format(place) for word in words] for words, _ in WRONG]
    asked = tmp_path / "words.json"
    asked.write_text(json.dumps(every))
    code, out, err = finish(start([str(asked)], program=MANY, cwd=place))
    assert code == 0, err
    wrong = []
    for (words, says), (came, _, told) in zip(WRONG, json.loads(out), strict=True):
        missing = [text for text in says if text not in told]
        if came != 2 or missing or "Traceback" in told:
            wrong.append(f"{' '.join(words)}: {came}, lacks {missing}: {told[-600:]}")
        injected()
    assert not wrong, "\n".join(wrong)
    assert list(place.iterdir()) == []
