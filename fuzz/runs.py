"""The processes of targets: atheris in Python, libFuzzer in C; both take libFuzzer's options."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuzz.clang import compile_fuzzer
from fuzz.seeds import write
from fuzz.target import CORPUS, HERE, TARGETS

BUILD: Final = Path("build/fuzz")
C_TARGETS: Final = {"datapath": 1024, "fastmmio": 1024}  # of fuzz/c: the most bytes of an input
PYTHON: Final = os.path.relpath(sys.executable) if "/.venv/" in sys.executable else sys.executable


def command(name: str, *arguments: str) -> list[str]:
    """Return the command of a target."""
    if name in C_TARGETS:
        return [str(BUILD / name), f"-max_len={C_TARGETS[name]}", *arguments]
    return [PYTHON, "-m", "fuzz.target", name, *arguments]


def again(name: str, crash: Path) -> list[str]:
    """Return the command that runs one input."""
    if name in C_TARGETS:
        return [str(BUILD / name), str(crash)]
    return [PYTHON, "-m", "fuzz.target", name, str(crash)]


def prepare(names: Sequence[str]) -> None:
    """Compile the targets in C.  Raises: HostError."""
    for name in names:
        if name in C_TARGETS:
            compile_fuzzer(HERE / "c" / f"{name}.c", BUILD / name)


def corpus(name: str) -> list[str]:
    """Return the directories that a target starts from; the first one gets what it finds."""
    found = BUILD / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    if name in TARGETS and not (CORPUS / name).is_dir():
        write(name, found)
    return [str(path) for path in (found, CORPUS / name) if path.is_dir()]
