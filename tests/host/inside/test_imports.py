"""Code outside the emulated host imports nothing of what runs inside it."""

from __future__ import annotations

import pytest

from tests.test_imports import MODULES, imported

INSIDE = "pyvmm.host.inside"


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(INSIDE)])
def test_module_outside_imports_nothing_from_inside(module: str) -> None:
    assert not {name for name in imported(module) if name.startswith(INSIDE)}
