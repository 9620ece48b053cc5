"""What every test runs under: one thread, one global seed, and the shared data if there is any."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("eqflow", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("eqflow")
torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Read when a kernel is decorated: without a GPU, all kernels of this process are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _same_weights_in_any_order() -> Iterator[None]:
    """Layers draw their first weights from torch's global generator: the same one in every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, `EQFLOW_SHARED_DATA` or `../shared/data`; skips where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EQFLOW_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, not found at {folder}; set EQFLOW_SHARED_DATA")
    return folder
