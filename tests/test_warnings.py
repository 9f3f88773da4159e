"""Python warns of nothing: its next versions remove what it deprecates today."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyvmm", "tests", "benchmarks", "scripts")
IMPORT_ALL = """
import importlib, pkgutil, pyvmm
for module in pkgutil.walk_packages(pyvmm.__path__, "pyvmm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.mark.parametrize("folder", SOURCES)
def test_sources_compile_without_a_warning(folder: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (ROOT / folder).rglob("*.py"):
            compile(path.read_bytes(), path, "exec", dont_inherit=True)


def test_modules_are_imported_without_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
