"""Runs of every format that ever was, as they were written then: they load, score and go on.

`examples/format-N/` holds small run folders, stopped at step 3 of 6, and what they computed when
they were written. Whoever raises `FORMAT` adds those of the new one; none is ever written anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import without_seconds
from tolerances import TOLERANCE

from eqflow.cli.main import main
from eqflow.errors import CheckpointError
from eqflow.flows import AbstractFlow, Solver
from eqflow.geometry import Clouds
from eqflow.graphs import load_graph
from eqflow.graphs.classifier import AbstractNodeClassifier
from eqflow.train import load
from eqflow.train.checkpoint import FORMAT, newest_state, read_weights
from eqflow.train.folder import PROVENANCE

EXAMPLES = Path(__file__).with_name("examples")
FORMATS = sorted(path.name for path in EXAMPLES.iterdir())
TRAINED = ("positions", "molecules", "nodes")
KINDS = (*TRAINED, "enf")
WATER = torch.tensor([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])
DATA = {"positions": "data.npy", "nodes": "graph.npz"}


@pytest.fixture(params=[(form, kind) for form in FORMATS for kind in KINDS], ids="-".join)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The kind of a run and a copy of its folder."""
    form, kind = request.param
    return kind, Path(shutil.copytree(EXAMPLES / form / kind, tmp_path / kind))


def computed(kind: str, folder: Path) -> list[float]:
    """Log-likelihoods of some structures, logits of all nodes; weights where those mean little."""
    model = load(folder)
    if kind == "enf":
        return [float(value.double().abs().sum()) for value in model.state_dict().values()]
    if isinstance(model, AbstractNodeClassifier):
        with torch.no_grad():
            return model(model.looped(load_graph("file", folder / DATA[kind]))).flatten().tolist()
    assert isinstance(model, AbstractFlow)
    if kind == "positions":
        clouds = Clouds.from_dense(torch.from_numpy(np.load(folder / DATA[kind])[:3]))
    else:
        clouds = Clouds.from_dense(WATER[None], numbers=torch.tensor([8, 1, 1]))
    return model.score(clouds, solver=Solver(method="rk4", steps=2)).log_prob.tolist()


def test_every_format_has_its_examples() -> None:
    assert [f"format-{number}" for number in range(1, FORMAT + 1)] == FORMATS, (
        "FORMAT was raised: add runs of the new format to tests/train/examples, and keep the old"
    )
    for form in FORMATS:
        assert sorted(path.name for path in (EXAMPLES / form).iterdir()) == sorted(KINDS)
    size = sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file())
    assert size < 300_000 * FORMAT


def test_an_example_loads_and_computes_what_it_did(example: tuple[str, Path]) -> None:
    kind, folder = example
    expected = json.loads((folder / "expected.json").read_text())
    found = computed(kind, folder)
    assert found == pytest.approx(expected, rel=TOLERANCE[torch.float32])
    assert len(expected) == 1 or len(set(expected)) > 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", TRAINED)
def test_an_example_is_resumed_and_ends(kind: str, form: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / form / kind, tmp_path / "run"))
    before = without_seconds((folder / "metrics.csv").read_text())
    _, *words = json.loads((folder / PROVENANCE).read_text())["command"]
    moved = [f"data.path={folder / DATA[kind]}"] if kind in DATA else []
    assert main([*words, *moved, f"run.dir={folder}"]) == 0
    rows = without_seconds((folder / "metrics.csv").read_text())
    assert rows[: len(before)] == before
    assert rows[-1][0] == "6"
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
    assert "resumed at step 3" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", TRAINED)
def test_an_example_says_which_format_it_has(kind: str, form: str, tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise AssertionError(line)

    folder = Path(shutil.copytree(EXAMPLES / form / kind, tmp_path / "run"))
    state = newest_state(folder / "checkpoints", fail)
    assert state is not None
    assert f"format-{state['format']}" == form
    assert f'"format":"{form[7:]}"' in (folder / "weights.safetensors").read_bytes()[:4000].decode(
        "utf-8", "replace"
    )


def test_an_example_that_is_not_as_it_was_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "format-1" / "enf", tmp_path / "run"))
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(folder / "weights.safetensors")
