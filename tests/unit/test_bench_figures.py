"""The READMEs show the figures that were measured."""

import pytest

from bench import readme
from bench.readme import Page


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.path.parent.name or "root")
def test_a_readme_shows_the_measured_figures(page: Page) -> None:
    assert page.written() == page.render(readme.measured()), "run `python -m bench.readme --write`"
