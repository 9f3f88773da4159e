"""clang with libFuzzer: Debian's, unpacked in the cache without root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError
from pyvmm.host.logs import failure
from pyvmm.host.parts.tools import TOOLS_SUITE, tree
from pyvmm.host.parts.trees import NOT_NEEDED
from pyvmm.host.progress import Progress

CLANG: Final = "clang-14"  # TOOLS_SUITE's
PACKAGES: Final = ("clang-14", "libclang-rt-14-dev", "libstdc++-12-dev", "libc6-dev")
# The rest belongs to gcc, or to other languages.  libc6 is there to be linked, not to run clang.
DROP: Final = NOT_NEEDED | {
    "libasan8", "libc6-i386", "libgc1", "libgprofng0", "libhwasan0", "libobjc-12-dev",
    "libobjc4", "lib32gcc-s1", "lib32stdc++6", "liblsan0", "libtsan2", "libubsan1",
}  # fmt: skip
FLAGS: Final = (
    "-std=gnu11", "-g", "-O1", "-Wall", "-Wno-unused-function", "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip


def compile_fuzzer(source: Path, into: Path) -> Path:
    """Compile a libFuzzer target with address and undefined-behaviour checks; return the program.

    Raises: HostError, with the compiler's output.
    """
    root = tree("clang", TOOLS_SUITE, PACKAGES, Progress(), drop=DROP)
    libraries = ":".join(map(str, sorted({p.parent for p in root.glob("usr/lib/*/libLLVM*.so*")})))
    command = [str(root / "usr/bin" / CLANG), f"--sysroot={root}", *FLAGS, str(source)]
    into.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, "-o", str(into)],
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise failure(CLANG, done.stderr)
    if not into.exists():
        raise HostError(f"{CLANG} wrote no {into}")
    return into
