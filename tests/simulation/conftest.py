"""Every test here runs the handler inside the simulation."""

from collections.abc import Iterator

import pytest

from tests.simulation.simulation import simulated


@pytest.fixture(autouse=True)
def in_a_simulated_world() -> Iterator[None]:
    """Run everything in simulated time, on one thread."""
    with simulated():
        yield
