"""Marks that several test modules share."""

import pytest

both_status_types = pytest.mark.parametrize("status_type", ["enum", "text"])
