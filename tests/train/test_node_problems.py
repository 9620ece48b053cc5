"""Each problem of a configuration of node classification is named before anything is read."""

from __future__ import annotations

import pytest

from eqflow.cli.compose import composed
from eqflow.train.node_problems import problems_of

BASE = ["task=node_classification", "data.path=graph.npz"]
BLEND = "model=blend encoding=laplacian"

BAD = [
    ("train.steps=0", "train.steps: found 0"),
    ("train.validate_every=0", "train.validate_every"),
    ("train.checkpoint_every=0", "train.checkpoint_every"),
    ("train.log_every=0", "train.log_every"),
    ("train.warmup_steps=-1", "train.warmup_steps"),
    ("train.patience=0", "train.patience: found 0, expected at least 1"),
    ("train.threads=0", "train.threads"),
    ("train.minutes=0", "train.minutes"),
    ("train.minutes=inf", "train.minutes: found inf, expected a finite number"),
    ("train.learning_rate=0", "train.learning_rate"),
    ("train.learning_rate=nan", "train.learning_rate"),
    ("train.learning_rate=11", "above 0 and at most 10"),
    ("train.clip=0", "train.clip"),
    ("train.weight_decay=-1", "train.weight_decay"),
    ("train.ema_decay=1", "train.ema_decay"),
    ("train.schedule=linear", "train.schedule: found 'linear', expected cosine or constant"),
    ("train.optimizer=sgd", "train.optimizer: found 'sgd', expected one of adam, adamax"),
    ("train.device=gpu", "train.device: found 'gpu', expected auto, cpu or cuda"),
    ("train.stop_times=[0]", "train.stop_times: found 0"),
    ("data.source=foo", "data.source: found 'foo', expected one of file, cora"),
    ("data.path=null", "data.path: needed for data.source=file"),
    ("data.path=null data.source=photo", "data.path: needed for data.source=photo"),
    ("data.path=graph.pt", "data.path: found graph.pt, expected an .npz"),
    ("data.split=random", "data.split: found 'random', expected one of published, planetoid"),
    ("data.split_index=-1", "data.split_index"),
    ("data.split=planetoid data.split_index=1", "expected data.split_seed"),
    ("data.split_seed=1", "expected data.split_index"),
    ("data.split=planetoid data.train_per_class=0", "data.train_per_class"),
    ("data.split=development data.development=0", "data.development"),
    ("model.width=0", "model.width"),
    ("model.time=0", "model.time"),
    ("model.time=nan", "model.time"),
    ("model.layers=0 solver.method=euler", "model.layers"),
    ("model.heads=0", "model.heads"),
    ("model.heads=3", "model.heads: found 3 with model.attention_width=64"),
    ("model.dropout=1", "model.dropout: found 1.0, expected 0 to below 1"),
    ("model.input_dropout=-0.1", "model.input_dropout"),
    ("model.diffusivity=pearson model.heads=64", "two or more channels a head"),
    ("model.diffusivity=dot", "model.diffusivity: found 'dot', expected one of scaled_dot"),
    ("model.normaliser=sparsemax", "model.normaliser: found 'sparsemax'"),
    ("model.over=both", "model.over: found 'both'"),
    ("model=graff model.mixing=free", "model.mixing: found 'free', expected one of symm"),
    ("model=graff model.damping=free", "model.damping: found 'free'"),
    ("model=gcn model.layers=1", "model.layers: found 1, expected at least 2"),
    ("model=entropic_gcn model.temperature=0", "model.temperature: found 0"),
    ("model=entropic_gcn model.weight=inf", "model.weight: found inf"),
    ("model=entropic_gcn model.constant=all", "model.constant: found 'all'"),
    ("model=pair_norm_gcn model.scale=0", "model.scale: found 0"),
    ("model=gated_gcn model.power=0.5", "model.power: found 0.5"),
    ("model=gcn train.stop_times=[1]", "train.stop_times: found [1.0] with model=gcn"),
    ("model=gcn regularisation.kinetic=1", "regularisation.kinetic: found 1.0 with model=gcn"),
    ("regularisation.jacobian=-1", "regularisation.jacobian"),
    ("regularisation.kinetic=1 solver.method=exponential", "regularisation: found it with"),
    ("solver.method=dopri8", "solver.method"),
    ("solver.rtol=0", "solver.rtol"),
    ("solver.method=rk4 solver.steps=0", "solver.steps: found 0"),
    ("solver.gradient=both", "solver.gradient"),
    ("model=blend", "encoding: found none with model=blend"),
    ("encoding=ppr", "encoding: found ppr with model=grand, which has no positions"),
    (f"{BLEND} encoding.width=0", "encoding.width"),
    (f"{BLEND} encoding.width=null", "encoding.width: found null"),
    (f"{BLEND} model.space=spherical model.diffusivity=position_and_feature", "model.space"),
    (f"{BLEND} model.space=hyperbolic", "model.space: found 'hyperbolic' with"),
    (f"{BLEND} model.neighbours=0", "model.neighbours"),
    (f"{BLEND} model.position_width=0", "model.position_width"),
    ("model=blend encoding=ppr encoding.teleport=1.5", "encoding.teleport"),
    ("model=blend encoding=deepwalk encoding.window=0", "encoding.window"),
    ("model=blend encoding=poincare", "distances of the Poincaré ball"),
    (
        "model=blend encoding=poincare encoding.width=8 model.space=hyperbolic "
        "model.diffusivity=position_and_feature",
        "encoding.width: found 8 with encoding=poincare and model.position_width=16",
    ),
    ("model=gde model.convolutions=0", "model.convolutions: found 0"),
    ("model=gde solver.method=exponential", "with model=gde, which is no diffusion"),
    ("model=gde solver.method=radau", "solver.method: found radau, which gives no gradients"),
    ("solver.method=radau", "solver.method: found radau, which gives no gradients"),
    ("model=gde solver.method=implicit", "with model=gde, which is no diffusion"),
    ("rewiring=knn", "rewiring: found knn without an encoding"),
    ("rewiring=ppr_top_k rewiring.neighbours=0", "rewiring.neighbours"),
    ("rewiring=ppr_top_k rewiring.teleport=0", "rewiring.teleport"),
    ("encoding=random_walk rewiring=radius rewiring.radius=0", "rewiring.radius"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[words for words, _ in BAD])
def test_each_problem_is_named_alone(words: str, expected: str) -> None:
    problems = problems_of(composed("train", [*BASE, *words.split()]))
    assert len(problems) == 1, problems
    assert expected in problems[0]


@pytest.mark.parametrize(
    "words",
    [
        "",
        BLEND,
        "model=blend encoding=ppr",
        "model=blend encoding=poincare model.diffusivity=position_and_feature "
        "model.space=hyperbolic",
        "encoding=random_walk rewiring=knn",
        "rewiring=two_hop",
        "solver.method=exponential",
        "solver.method=implicit",
        "model.diffusivity=gaussian_mixture model.heads=3",
        "model=graff solver.method=euler model.layers=4 model.matrices=4",
        "regularisation.kinetic=1 regularisation.jacobian=1",
        "train.stop_times=[0.5,2]",
    ],
)
def test_what_fits_together_has_no_problem(words: str) -> None:
    assert problems_of(composed("train", [*BASE, *words.split()])) == []


def test_all_problems_come_at_once() -> None:
    words = ["train.steps=0", "model.time=-1", "data.split=other", "solver.rtol=0", "encoding=ppr"]
    problems = problems_of(composed("train", [*BASE, *words]))
    found = [line.split(":")[0] for line in problems]
    assert set(found) == {"train.steps", "model.time", "data.split", "solver.rtol", "encoding"}


def test_every_part_of_a_model_that_is_wrong_is_named_at_once() -> None:
    parts = {
        "grand": "diffusivity normaliser over",
        "blend": "space diffusivity normaliser over",
        "graff": "mixing damping",
    }
    for model, names in parts.items():
        words = [f"model={model}", *(f"model.{name}=other" for name in names.split())]
        words += ["encoding=laplacian"] if model == "blend" else []
        problems = problems_of(composed("train", [*BASE, *words]))
        assert [line.split(":")[0] for line in problems] == [f"model.{n}" for n in names.split()]
