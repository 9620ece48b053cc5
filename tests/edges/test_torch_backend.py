import pytest
from conformance import BackendConformance

from eqflow.edges.reference.by_hand import rows

SIZES = ("LARGE", "LARGE_DIFFERENCE", "LARGE_WEIGHTS", "COLUMNS", "COLUMNS_OF_DIFFERENCE")


class TestTorchBackend(BackendConformance):
    """The backend that defines what the primitives mean."""

    backend = "torch"


class TestTorchBackendByRows(BackendConformance):
    """The same laws where every call goes to the kernels for rows, however small and narrow."""

    backend = "torch"

    @pytest.fixture(autouse=True)
    def _everything_by_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in SIZES:
            monkeypatch.setattr(rows, name, 1)
