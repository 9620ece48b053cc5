"""Words of a command: what is understood, and what a person reads who typed them wrong."""

from __future__ import annotations

import pytest

from eqflow.cli.compose import composed, keys
from eqflow.errors import UsageError


def refused(verb: str, *words: str) -> str:
    with pytest.raises(UsageError) as error:
        composed(verb, words)
    return str(error.value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("experiment=dw5", "has no option 'dw5'; expected one of druglike, dw4, lj13"),
        ("experiment=qm9_position", "did you mean qm9_positions?"),
        ("experiment=../dw4", "has no option '../dw4'"),
        ("experiment=", "has no option ''"),
        ("experimet=dw4", "did you mean experiment?"),
        ("model.widht=3", "there is no key 'model.widht'; did you mean model.width?"),
        ("step=3", "did you mean solver.steps or train.steps?"),
        ("learning_rate=1", "did you mean train.learning_rate?"),
        ("seed=x", "seed=x: expected a whole number."),
        ("seed=1.5", "expected a whole number"),
        ("seed=", "expected a whole number"),
        ("seed=null", "expected a whole number"),
        ("seed=1,2", "expected a whole number"),
        ("seed=true", "expected a whole number"),
        ("seed=inf", "expected a whole number"),
        ("train.clip=big", "expected a number."),
        ("train.minutes=soon", "expected a number or null."),
        ("train.tensorboard=maybe", "expected true or false."),
        ("name=null", "expected a value"),
        ("run.dir=", "found no value after the equals sign"),
        ("solver=3", "solver is a section; set its keys, such as solver.method"),
        ("model=3", "model has no option '3'; expected one of egnn, joint_egnn"),
        ("train", "expected key=value, such as seed=1."),
        ("=3", "expected key=value"),
        ("--multirun", "expected key=value"),
        ("+foo=1", "neither added nor removed"),
        ("++seed=1", "neither added nor removed"),
        ("~seed", "neither added nor removed"),
        ("hydra.run.dir=x", "did you mean run.dir?"),
        ("objective=flow_machting", "did you mean flow_matching?"),
        ("objective=null", "expected one of flow_matching, maximum_likelihood"),
        ("objective.name=maximum_likelihood", "there is no key 'objective.name'"),
        ("objective.kinetic=1", "objective.kinetic: only with objective=maximum_likelihood."),
        ("divergence.probes=1", "only with divergence=hutchinson or divergence=hutch_plus_plus"),
        ("divergence=exat", "did you mean exact?"),
        ("data.path=${nosuch}", "nosuch"),
        ("seed=${nosuch}", "nosuch"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_expected(word: str, expected: str) -> None:
    assert expected in refused("train", word)


def test_all_wrong_words_come_in_one_message() -> None:
    text = refused("train", "experiment=dw4", "model.widht=3", "train.stesp=4", "train.steps=x")
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "model.widht=3",
        "train.stesp=4",
        "train.steps=x",
    ]
    text = refused("train", "objective.kinetic=1", "divergence.probes=2")
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/plain.npz",
        "/tmp/ä b/ü.npz",
        "/tmp/日本 語/x,y.npz",
        "/tmp/a(b)[c]{d}.npz",
        "/tmp/a=b:c;d&e|f*g?h#i!j@k%l^m~n.npz",
        "/tmp/it's.npz",
        '/tmp/"quoted".npz',
        "/tmp/back\\slash\\'.npz",
        "C:\\data\\",
        "-",
        "1e5",
        "true",
        "🧪.xyz",
    ],
)
def test_a_path_may_hold_any_character(path: str) -> None:
    assert composed("train", [f"data.path={path}"]).data.path == path


@pytest.mark.parametrize(
    ("word", "section", "name", "value"),
    [
        ("train.steps=1e4", "train", "steps", 10_000),
        ("train.steps=10_000", "train", "steps", 10_000),
        ("train.minutes=2", "train", "minutes", 2.0),
        ("train.minutes=null", "train", "minutes", None),
        ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3),
        ("train.tensorboard=False", "train", "tensorboard", False),
        ("model.coordinate_range=null", "model", "coordinate_range", None),
        ("data.elements=[H, C]", "data", "elements", ["H", "C"]),
        ("data.elements=H,C,No", "data", "elements", ["H", "C", "No"]),
        ("data.elements=H", "data", "elements", ["H"]),
        ("data.elements=[]", "data", "elements", []),
        ("data.path='a b'", "data", "path", "a b"),
        ("data.path=null", "data", "path", None),
        ("train.batch_size=${train.log_every}", "train", "batch_size", 50),
    ],
)
def test_values_are_read_as_people_write_them(
    word: str, section: str, name: str, value: object
) -> None:
    assert getattr(getattr(composed("train", [word]), section), name) == value


def test_interpolation_names_a_run_after_its_keys() -> None:
    config = composed("train", ["experiment=dw4", "seed=3", "run.dir=runs/${name}_${seed}"])
    assert config.run.dir == "runs/dw4_3"


def test_later_words_win() -> None:
    assert composed("train", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("verb", ["sample", "score", "check"])
def test_every_verb_names_wrong_keys(verb: str) -> None:
    assert "did you mean run?" in refused(verb, "runn=x")
    assert "expected a whole number" in refused(verb, "seed=x")


def test_every_key_says_what_it_means() -> None:
    for verb in ("train", "sample", "score", "check"):
        for name, key in keys(verb).items():
            assert key.help, f"{verb}: {name}"
