"""A run whose message passes are compiled is resumed by another process, bit for bit."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

import eqflow
from eqflow.train.compiling import compiling
from eqflow.train.config import ModelConfig


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)
@pytest.mark.timeout(600)
def test_a_compiled_run_in_two_processes_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = tiny.particles(tmp_path / "data.npy", 60, 13, 3)
    assert "up to a minute" in compiling(eqflow.read(data, 3)[:32], 32, ModelConfig(width=32))
    words = ["experiment=lj13", f"data.path={data}", "objective=maximum_likelihood"]
    words += ["train.batch_size=32", "model.width=32", "model.layers=2", "train.compile=true"]
    words += ["train.schedule=constant", "train.checkpoint_every=1", "train.final_structures=0"]
    words += ["solver.method=rk4", "solver.steps=2", "train.device=cpu", "train.threads=1"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder, steps in ((whole, 4), (halves, 2), (halves, 4)):
        command = [sys.executable, "-m", "eqflow", "train", *words, f"run.dir={folder}"]
        subprocess.run([*command, f"train.steps={steps}"], check=True, capture_output=True)
    first, second = (eqflow.load(folder).state_dict() for folder in (whole, halves))
    assert all(torch.equal(first[key], second[key]) for key in first)
