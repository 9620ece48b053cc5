"""The conformance suite is imported by tests: its failures are to say what was compared."""

import pytest

pytest.register_assert_rewrite("conformance", "closure")

# `tests/edges/reference/test_rows.py` compares the kernels for rows with the formulas; of the laws
# that hold for both, most are left to the slow tests.
LAWS_BY_ROWS_ON = ("repeated and loops", "without_edges", "huge", "digits")
PRIMITIVES_BY_ROWS = ("dot", "weighted", "softmax", "normalised", "attention")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(getattr(item, "cls", None), "__name__", "") == "TestTorchBackendByRows":
            is_kept = any(words in item.name for words in LAWS_BY_ROWS_ON)
            is_kept &= any(words in item.name for words in PRIMITIVES_BY_ROWS)
            if not is_kept:
                item.add_marker(pytest.mark.slow)
