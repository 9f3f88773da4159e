from __future__ import annotations

import pytest

from pyvmm.sweep import work
from tests.sweep import pretended


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are done by a pyvmm in name."""
    monkeypatch.setattr(work, "COMMAND", pretended.COMMAND)
