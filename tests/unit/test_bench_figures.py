"""The README's figures are those that were measured."""

import json

from bench import readme


def test_the_figures_in_the_readme_are_the_measured_ones() -> None:
    results = json.loads(readme.RESULTS.read_text())

    assert readme.in_readme() == readme.rendered(results), "run `python -m bench.readme --write`"
