from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.judges import Libfdt


@pytest.fixture(scope="session")
def libfdt(dtc: Path) -> Libfdt:
    return Libfdt(dtc)
