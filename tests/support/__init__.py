"""Helpers that the test suites share."""

import pytest

# Its assertions explain themselves, like those in test modules.
pytest.register_assert_rewrite("tests.support.stage")
