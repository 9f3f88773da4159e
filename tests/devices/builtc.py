"""C code of pyvmm's extension, built for this machine and loaded by cffi: no KVM, no arm64."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from cffi import FFI

from tests.conftest import tool

CHECKS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
OPTIONS: Final = (
    "-D_GNU_SOURCE", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror",
    "-shared", "-fPIC", "-pthread",
)  # fmt: skip


def load(source: Path, declarations: str, *options: str) -> tuple[Any, Any]:
    """Build a library from a source file; return cffi's FFI and the library."""
    ffi = FFI()
    ffi.cdef(declarations)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / f"{source.stem}.so"
        command = [str(tool("gcc")), *OPTIONS, *options, "-o", str(out), str(source)]
        subprocess.run(command, check=True)
        return ffi, ffi.dlopen(str(out))


def sanitizers() -> dict[str, str]:
    """Return the environment of a process that loads a library built with CHECKS."""
    found = [_library(name) for name in ("libasan.so", "libubsan.so")]
    return {
        "LD_LIBRARY_PATH": str(found[0].parent),
        "LD_PRELOAD": " ".join(path.name for path in found),
        "ASAN_OPTIONS": "detect_leaks=0",
    }


def _library(name: str) -> Path:
    command = [str(tool("gcc")), f"-print-file-name={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).resolve()
