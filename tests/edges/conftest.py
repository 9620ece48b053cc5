"""The conformance suite is imported by tests: its failures are to say what was compared."""

import pytest

pytest.register_assert_rewrite("conformance", "closure")
