from conformance import BackendConformance


class TestTorchBackend(BackendConformance):
    """The backend that defines what the primitives mean."""

    backend = "torch"
