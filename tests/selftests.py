"""The kernel's own SVE tests (tools/testing/selftests/arm64/fp), from Debian's linux-source.

They are GPL-2.0: fetched into the cache and built for the tests that run them, and kept nowhere
else.  Of the whole source, only their own directory stays.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from pyvmm.dirs import cached
from pyvmm.host.debian import Suite
from pyvmm.host.progress import Progress
from pyvmm.host.tools import TOOLS_SUITE, trees_dir

PACKAGE: Final = "linux-source-6.1"  # of the suite whose compiler and kernel headers build them
DIRECTORY: Final = "tools/testing/selftests/arm64/fp"
WANTED: Final = (f"{DIRECTORY}/", "tools/testing/selftests/kselftest.h")

NO_LIBC: Final = ("-nostdlib", "-no-pie")  # the tests proper bring a _start of their own

# What is built, of which files, with what beside -static; as the directory's Makefile has it.
PROGRAMS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "sve-probe-vls": (("sve-probe-vls.c", "rdvl.S"), ()),
    "vlset": (("vlset.c",), ()),
    "fp-stress": (("fp-stress.c",), ()),
    "sve-test": (("sve-test.S", "asm-utils.S"), NO_LIBC),
    "fpsimd-test": (("fpsimd-test.S", "asm-utils.S"), NO_LIBC),
}


def sources(progress: Progress) -> Path:
    """The directory of their sources, in a tree that holds nothing else of the kernel's."""

    def build(into: Path) -> None:
        suite = Suite(TOOLS_SUITE)
        package = into / "package"
        package.mkdir()
        suite.unpack([p for p in suite.closure([PACKAGE]) if p.name == PACKAGE], package, progress)
        _extract(package / f"usr/src/{PACKAGE}.tar.xz", into)
        shutil.rmtree(package)

    path = trees_dir() / f"selftests-{PACKAGE}-{TOOLS_SUITE}"
    if path.is_dir():
        return path / DIRECTORY
    with progress.step(f"getting the kernel's selftests from Debian {TOOLS_SUITE}'s {PACKAGE}"):
        return cached(path, build) / DIRECTORY


def _extract(tarball: Path, into: Path) -> None:
    """Take what is wanted out of a kernel's source, whose paths begin with a directory."""
    with tarfile.open(tarball, "r|xz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            file = archive.extractfile(member) if name.startswith(WANTED) else None
            if file is not None:
                path = into / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())


def build_programs(gcc: Path, into: Path) -> None:
    """Build them, static, in that directory."""
    where = sources(Progress())
    for name, (files, options) in PROGRAMS.items():
        command = [str(gcc), "-O2", "-static", *options, "-o", str(into / name), *files]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def in_guest(built: Path) -> dict[str, bytes]:
    """Files for an initramfs: the programs, in /fp."""
    return {f"fp/{name}": (built / name).read_bytes() for name in PROGRAMS}


def probed(said: str) -> list[int]:
    """The vector lengths (in bits) that sve-probe-vls said there are."""
    assert "not ok" not in said, said
    return [8 * int(size) for size in re.findall(r"^# (\d+)$", said, re.MULTILINE)]
