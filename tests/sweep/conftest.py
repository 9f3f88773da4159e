from __future__ import annotations

import pytest

from pyvmm.sweep import work
from tests.sweep import fake as fake_pyvmm


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fake pyvmm do the runs."""
    monkeypatch.setattr(work, "COMMAND", fake_pyvmm.COMMAND)
