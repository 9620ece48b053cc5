"""Each value out of range and each contradiction is named before anything is made."""

from __future__ import annotations

import pytest

from eqflow.cli.compose import composed
from eqflow.train.problems import problems_of

BAD = [
    ("train.steps=0", "train.steps: found 0"),
    ("train.batch_size=-1", "train.batch_size: found -1"),
    ("train.checkpoint_every=0", "train.checkpoint_every"),
    ("train.validate_every=0", "train.validate_every"),
    ("train.validation_structures=0", "train.validation_structures"),
    ("train.log_every=0", "train.log_every"),
    ("train.final_structures=-1", "train.final_structures"),
    ("train.warmup_steps=-1", "train.warmup_steps"),
    ("train.pairs=0", "train.pairs"),
    ("train.threads=0", "train.threads"),
    ("train.minutes=0", "train.minutes"),
    ("train.minutes=nan", "train.minutes"),
    ("train.learning_rate=0", "train.learning_rate"),
    ("train.learning_rate=inf", "train.learning_rate"),
    ("train.clip=-1", "train.clip"),
    ("train.weight_decay=nan", "train.weight_decay"),
    ("train.ema_decay=1", "train.ema_decay"),
    ("train.optimizer=sgd", "train.optimizer: found 'sgd', expected one of adam, adamax"),
    ("train.schedule=linear", "train.schedule: found 'linear', expected cosine or constant"),
    ("train.device=gpu", "found 'gpu', expected auto, cpu or cuda"),
    ("data.structures=0", "data.structures"),
    ("data.points=0", "data.points"),
    ("data.validation=0", "data.validation"),
    ("data.test=1", "data.test"),
    ("data.on_problem=ask", "data.on_problem"),
    ("data.source=foo", "data.source: found 'foo', expected one of file"),
    ("data.source=file", "data.path: needed for data.source=file"),
    ("data.dimension=3", "data.dimension: found 3, expected 2 for data.source=dw4"),
    ("data.elements=Xx", "data.elements: found 'Xx'"),
    ("data.elements=H,C", "dw4 has no elements"),
    ("model.layers=0", "model.layers"),
    ("model.width=0", "model.width"),
    ("model.time_frequencies=-1", "model.time_frequencies"),
    ("model.coordinate_update=other", "model.coordinate_update"),
    ("model.coordinate_range=0", "model.coordinate_range"),
    ("model.cutoff=-1", "model.cutoff"),
    ("objective.coupling=optimal", "objective.coupling: found 'optimal'"),
    ("objective.time_power=0", "objective.time_power: found 0"),
    ("objective.time_power=inf", "objective.time_power: found inf"),
    ("solver.method=dopri8", "solver.method"),
    ("solver.method=exponential", "which solves diffusions on graphs"),
    (
        "objective=maximum_likelihood solver.method=radau",
        "solver.method: found radau with objective=maximum_likelihood, which needs gradients",
    ),
    ("solver.rtol=0", "solver.rtol"),
    ("solver.atol=-1", "solver.atol"),
    ("solver.method=rk4 solver.steps=0", "solver.steps: found 0"),
    ("solver.step_limit=0", "solver.step_limit"),
    ("solver.gradient=both", "solver.gradient"),
    ("divergence=hutchinson divergence.probes=0", "divergence.probes"),
    ("divergence=hutchinson divergence.distribution=cauchy", "divergence.distribution"),
    ("divergence=hutch_plus_plus divergence.sketch=0", "divergence.sketch"),
    ("objective=maximum_likelihood objective.kinetic=-1", "objective.kinetic"),
    ("objective=maximum_likelihood objective.jacobian=nan", "objective.jacobian"),
    (
        "objective=maximum_likelihood objective.kinetic=1e-3 objective.trace=exact",
        "regularisation needs objective.trace=hutchinson",
    ),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[words for words, _ in BAD])
def test_each_problem_is_named_alone(words: str, expected: str) -> None:
    problems = problems_of(composed("train", ["experiment=dw4", *words.split()]))
    assert len(problems) == 1
    assert expected in problems[0]


def test_an_implicit_method_may_serve_a_flow_that_is_not_trained_by_it() -> None:
    words = ["experiment=dw4", "objective=flow_matching", "solver.method=radau"]
    assert problems_of(composed("train", words)) == []


def test_presets_have_no_problem_but_a_missing_path() -> None:
    from eqflow.cli.compose import experiments

    for name in experiments("structures"):
        config = composed("train", [f"experiment={name}"])
        needed = f"data.path: needed for data.source={config.data.source}; give a file or a folder."
        missing = name in ("mnist2d", "molecules", "druglike")
        assert problems_of(config) == ([needed] if missing else [])


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    words = ["experiment=dw4", "data.validation=0.5", "data.test=0.5"]
    assert problems_of(composed("train", words)) == [
        "data.validation + data.test: found 1, expected below 1."
    ]
