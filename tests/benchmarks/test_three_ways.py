"""What the comparison of three ways scores on is unseen, and its figures are what they say."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import three_ways
import tiny
import torch
from three_ways import error, per_degree_of_freedom, unseen
from tolerances import TOLERANCE
from torch import Tensor, nn

import eqflow
from eqflow import rng
from eqflow.edges import Edges
from eqflow.flows import Flow
from eqflow.geometry import Clouds

LITTLE = ["data.validation=0.2", "data.test=0.2", "train.steps=1", "train.tensorboard=false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.particles(tmp_path_factory.mktemp("data") / "x.npy", 40, 4, 2)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert tiny.train(data, folder, *LITTLE) == 0
    return folder


@pytest.fixture
def flow(run: Path) -> Flow:
    found = eqflow.load(run)
    assert isinstance(found, Flow)
    # A new field moves points by almost nothing, and so by little more than rounding.
    source = rng.generator(0, "three ways")
    for weight in found.parameters():
        weight.data = 0.3 * rng.normal(tuple(weight.shape), weight, source)
    return found


class Lopsided(nn.Module):
    """A field that stretches one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None) -> Tensor:
        return x * self.stretch


def test_structures_held_out_of_a_file_are_those_that_the_run_set_aside(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = unseen("dw4", run)
    assert len(held_out) == 8  # a fifth
    every = torch.from_numpy(np.load(data)).double()
    pairs = torch.stack([torch.pdist(x) for x in every])
    found = torch.stack([torch.pdist(cloud.x.double()) for cloud in held_out])
    near = torch.cdist(found, pairs)
    assert float(near.amin(1).max()) < TOLERANCE[torch.float32]  # each is one of the file
    assert len(near.argmin(1).unique()) == 8
    # Trained on are the others: parts of the same split.
    load, parts = three_ways.load_dataset, {}
    monkeypatch.setattr(
        three_ways, "load_dataset", lambda *given: parts.setdefault("all", load(*given))
    )
    unseen("dw4", run)
    trained = torch.stack([torch.pdist(each.x.double()) for each in parts["all"].parts["train"]])
    assert float(torch.cdist(found, trained).min()) > 1e-3


def test_structures_of_a_target_without_a_file_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = None, {"data": {"path": None}, "seed": 0}
    monkeypatch.setattr(three_ways, "load_with_config", lambda folder: generated)
    monkeypatch.setitem(three_ways.SCORED, "dw4", 5)
    fresh = unseen("dw4", tmp_path)
    assert (fresh.sizes.tolist(), fresh.dimension) == ([4] * 5, 2)
    assert len(fresh.x.unique(dim=0)) == 20


def test_a_score_is_divided_by_the_degrees_of_freedom_of_its_own_cloud() -> None:
    batch = Clouds(torch.zeros(7, 3), torch.tensor([0, 2, 7]))
    # One of (2 − 1) 3 and one of (5 − 1) 3 degrees: 6 / 3 = 2 and 12 / 12 = 1.
    assert per_degree_of_freedom(torch.tensor([-6.0, -12.0]), batch) == 1.5


def test_the_error_is_that_of_the_arithmetic_and_the_flow_stays_as_it_was(
    run: Path, flow: Flow
) -> None:
    batch, before = unseen("dw4", run)[:4], deepcopy(flow.state_dict())
    found = {name: error(flow, batch, name) for name in three_ways.DTYPES}
    for name, dtype in three_ways.DTYPES.items():
        assert 0 < found[name] < TOLERANCE[dtype]
    assert found["float64"] < 1e-4 * found["float32"]
    after = flow.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(after[key].dtype == before[key].dtype for key in before)
    broken = deepcopy(flow)
    broken.continuous.field = Lopsided()
    assert error(broken, batch, "float64") > 0.1
    assert math.isfinite(error(broken, batch, "float32"))
