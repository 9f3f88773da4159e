"""The KVM extension for arm64, compiled with a cross compiler into the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cache_dir
from pyvmm.errors import HostError
from pyvmm.host.parts.debian import Suite
from pyvmm.host.parts.payload import EXTENSION, PACKAGE
from pyvmm.host.parts.tools import TOOLS_SUITE, Tool, cross, trees_dir
from pyvmm.host.progress import Progress

BUILDER: Final = "pyvmm.kvm._build"
HEADERS: Final = "libpython3.11-dev:arm64"
SUFFIXES: Final = (".py", ".c", ".h")  # of its sources


def build(progress: Progress) -> Path:
    """Return the extension (a file); compile it if its sources changed.

    Raises:
        HostError: the compiler is not available, or fails.
    """
    cffi = importlib.util.find_spec("cffi")
    if cffi is None or cffi.origin is None:
        raise HostError("cffi is not installed", hint="pip install cffi")
    files = sorted(p for p in (PACKAGE / "kvm").rglob("*") if p.suffix in SUFFIXES)
    sources = b"".join(path.read_bytes() for path in files)
    version = Path(cffi.origin).read_bytes()
    key = hashlib.sha256(sources + version).hexdigest()[:16]
    path = cache_dir("extensions") / key

    def compile_into(into: Path) -> None:
        source = into / "_kvm.c"
        # In another process: host does not import kvm.
        builder = Tool((sys.executable, "-m", BUILDER), {"PYTHONPATH": str(PACKAGE.parent)})
        builder.run([str(source)])
        include = python_headers(progress)
        cross("gcc", progress).run(
            ["-shared", "-fPIC", "-O2", "-Wall", "-Wl,--build-id=none",
             "-include", "string.h", "-DPy_LIMITED_API=0x030b0000",
             f"-I{include}", f"-I{include.parent}", "-o", str(into / EXTENSION), str(source)]
        )  # fmt: skip

    made = progress.cached("compiling the KVM extension for arm64", path, compile_into)
    return made / EXTENSION


def python_headers(progress: Progress) -> Path:
    """Return the directory of Python.h of Python 3.11 for arm64."""

    def build(into: Path) -> None:
        source = Suite(TOOLS_SUITE)
        wanted = [p for p in source.closure([HEADERS]) if p.name == "libpython3.11-dev"]
        source.unpack(wanted, into, progress)
        for archive in into.rglob("*.a"):
            archive.unlink()

    path = trees_dir() / f"python-headers-{TOOLS_SUITE}"
    made = progress.cached("getting Python's headers for arm64", path, build)
    return made / "usr/include/python3.11"
