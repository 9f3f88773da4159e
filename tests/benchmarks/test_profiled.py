"""The table of phases of a start."""

from __future__ import annotations

import importlib
from operator import attrgetter

import pytest

from benchmarks._profiled import PHASES


@pytest.mark.parametrize(("phase", "module", "function"), PHASES)
def test_phase_is_a_function_of_pyvmm(phase: str, module: str, function: str) -> None:
    assert phase
    assert callable(attrgetter(function)(importlib.import_module(module)))
