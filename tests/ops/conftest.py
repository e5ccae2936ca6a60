"""The template, as tests/infra has it."""

from tests.infra.conftest import template, templates  # noqa: F401 - fixtures
