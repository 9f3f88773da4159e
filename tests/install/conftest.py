"""Fixtures: the distributions, built once a run."""

from __future__ import annotations

import pytest

from tests.distributions import Distributions, build


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Return a wheel and an sdist of this tree."""
    return build(tmp_path_factory.mktemp("distributions"))
