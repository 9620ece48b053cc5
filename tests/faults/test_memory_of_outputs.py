"""Structures too large for memory among small ones: they are left out, and the rest goes on."""

from __future__ import annotations

import csv
import math
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import eqflow

import eqflow as package
from eqflow.data import read

SIZES = [3, 4, 3, 8000, 5, 3, 4]
LIMIT = 5 * 2**28  # bytes: Python with PyTorch takes 0.7 of 1.25 GiB


def within_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def structures(path: Path, sizes: Sequence[int]) -> Path:
    """Points far apart on a curve, of any number."""
    t = np.arange(sum(sizes))
    x = np.stack([np.cos(t), np.sin(2.3 * t)], 1) * (1 + 0.01 * t[:, None])
    np.savez(path, x=x, ptr=np.concatenate([[0], np.cumsum(sizes)]))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("planar")
    assert tiny.train(tiny.particles(base / "data.npy"), base / "run") == 0
    return base / "run"


@pytest.mark.fault(
    13,
    "a structure of 8,000 points among small ones, under a limit of memory, scored exactly",
    "the batch is halved down to it, it has a row `out_of_memory`, the rest its scores, exit 7",
)
def test_a_structure_too_large_to_score_is_a_row_that_says_so(run: Path, tmp_path: Path) -> None:
    data, out = structures(tmp_path / "d.npz", SIZES), tmp_path / "s.csv"
    words = ["score", f"run={run}", f"data.path={data}", f"out={out}", "divergence=exact"]
    code, said, err = eqflow([*words, "device=cpu"], preexec_fn=within_limit)
    assert (code, err) == (7, "")
    assert "left out: structure 3 of 8,000 points does not fit into memory" in said
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [
        "out_of_memory" if size == 8000 else "success" for size in SIZES
    ]
    assert [int(row["n"]) for row in rows] == SIZES
    assert math.isnan(float(rows[3]["log_prob"]))
    small = read(data)[[0, 1, 2, 4, 5, 6]]
    expected = package.load(run).log_prob(small, divergence="exact").tolist()
    found = [float(row["log_prob"]) for row in rows if row["status"] == "success"]
    # In groups of other sizes float32 is rounded otherwise.
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.fault(
    13,
    "structures of 8,000 points to be drawn among small ones, under a limit of memory",
    "the batch is halved down to them, they are listed with their size, the rest is drawn, exit 7",
)
@pytest.mark.slow
def test_structures_too_large_to_draw_are_listed_and_the_rest_is_drawn(
    run: Path, tmp_path: Path, injected: Callable[[], None]
) -> None:
    like, out = structures(tmp_path / "d.npz", SIZES), tmp_path / "s.npz"
    words = ["sample", f"run={run}", f"like={like}", "n=14", f"out={out}", "device=cpu"]
    code, said, err = eqflow(words, preexec_fn=within_limit)
    assert (code, err) == (7, "")
    for place in (3, 10):
        assert f"left out: structure {place} of 8,000 points does not fit into memory" in said
        injected()
    assert "left out: 2 structures of 8,000 points and more" in said
    assert read(out).sizes.tolist() == [size for size in SIZES if size < 8000] * 2


@pytest.mark.fault(
    13,
    "nothing but structures that are too large, under a limit of memory",
    "says so with advice, exit 5",
)
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sample", "score"])
def test_where_no_structure_fits_the_verb_ends_with_advice(
    run: Path, tmp_path: Path, verb: str
) -> None:
    data = structures(tmp_path / "d.npz", [8000, 9000])
    if verb == "score":
        more, out = [f"data.path={data}", "divergence=exact"], tmp_path / "s.csv"
    else:
        more, out = [f"like={data}", "n=2"], tmp_path / "s.npz"
    words = [verb, f"run={run}", f"out={out}", "device=cpu", *more]
    code, _, err = eqflow(words, preexec_fn=within_limit)
    assert code == 5
    assert "none of 2 structures fits into memory" in err
    assert "free memory" in err
    if verb == "score":
        with out.open(newline="", encoding="utf-8") as file:
            assert [row["status"] for row in csv.DictReader(file)] == ["out_of_memory"] * 2
    else:
        assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {data.name, out.name}
