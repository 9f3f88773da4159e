"""The kernel's own tests of SVE and of KVM (tools/testing/selftests), from Debian's linux-source.

They are GPL-2.0: pyvmm downloads them into the cache and builds them for the tests that run them.
Only their directories and headers stay, not the whole source.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cached
from pyvmm.host.parts.debian import Suite
from pyvmm.host.parts.tools import trees_dir
from pyvmm.host.progress import Progress
from pyvmm.host.settings import DEFAULT_KERNEL, KERNEL_SUITES

FP: Final = "tools/testing/selftests/arm64/fp"
KVM: Final = "tools/testing/selftests/kvm"
WANTED: Final = (
    f"{FP}/", f"{KVM}/", "tools/testing/selftests/rseq/", "tools/testing/selftests/kselftest",
    "tools/include/", "tools/lib/rbtree.c", "tools/arch/arm64/", "arch/arm64/tools/",
    "arch/arm64/kernel/cpufeature.c",
)  # fmt: skip

NO_LIBC: Final = ("-nostdlib", "-no-pie")  # the tests proper bring a _start of their own

# Programs, their files and their flags beside -static, as in the directory's Makefile.
PROGRAMS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "sve-probe-vls": (("sve-probe-vls.c", "rdvl.S"), ()),
    "rdvl-sve": (("rdvl-sve.c", "rdvl.S"), ()),
    "vlset": (("vlset.c",), ()),
    "fp-stress": (("fp-stress.c",), ()),
    "sve-test": (("sve-test.S", "asm-utils.S"), NO_LIBC),
    "fpsimd-test": (("fpsimd-test.S", "asm-utils.S"), NO_LIBC),
}


def sources(progress: Progress, version: str = DEFAULT_KERNEL) -> Path:
    """Return a tree with the wanted files of a Debian kernel's source."""
    suite, name = KERNEL_SUITES[version], f"linux-source-{version}"

    def build(into: Path) -> None:
        source = Suite(suite)
        package = into / "package"
        package.mkdir()
        found = [p for p in source.closure([name]) if p.name == name]
        source.unpack(found, package, progress)
        _extract(package / f"usr/src/{name}.tar.xz", into)
        shutil.rmtree(package)

    recipe = hashlib.sha256(" ".join(WANTED).encode()).hexdigest()
    path = trees_dir() / f"selftests-{name}-{suite}-{recipe[:8]}"
    if path.is_dir():
        return path
    with progress.step(f"getting the kernel's selftests from Debian {suite}'s {name}"):
        return cached(path, build)


def _extract(tarball: Path, into: Path) -> None:
    """Extract the wanted files from a kernel's source, without the first directory."""
    with tarfile.open(tarball, "r|xz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            wanted = member.isfile() and name.startswith(WANTED)
            file = archive.extractfile(member) if wanted else None
            if file is not None:
                path = into / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())


def build_programs(gcc: Path, into: Path) -> None:
    """Build the SVE tests, static, in that directory."""
    where = sources(Progress()) / FP
    for name, (files, options) in PROGRAMS.items():
        _run([str(gcc), "-O2", "-static", *options, "-o", str(into / name), *files], where)


def build_kvm_test(gcc: Path, version: str, name: str, into: Path) -> Path:
    """Build a test of KVM like that kernel's Makefile, static, in that directory."""
    tree = sources(Progress(), version)
    arch = next(a for a in ("arm64", "aarch64") if (tree / KVM / "lib" / a).is_dir())
    _write_sysreg_defs(tree, into)
    include = [
        into, tree / "tools/include", tree / "tools/arch/arm64/include",
        tree / "tools/include/uapi", tree / "tools/arch/arm64/include/uapi",
        "include", f"include/{arch}", "../rseq", "..",
    ]  # fmt: skip
    # Freestanding: string_override.c needs it.
    options = [
        "-O2", "-std=gnu99", "-D_GNU_SOURCE", "-ffreestanding", "-fno-strict-aliasing",
        "-fno-stack-protector", "-fno-PIE", "-no-pie", "-static", "-pthread", "-w",
    ]  # fmt: skip
    tests = [file for file in (f"{name}.c", f"{arch}/{name}.c") if (tree / KVM / file).exists()]
    library = [*(tree / KVM / "lib").glob("*.c"), *(tree / KVM / "lib" / arch).glob("*.[cS]")]
    program = into / name
    words = [*options, *(f"-I{place}" for place in include), "-o", program, *tests, *library]
    _run([str(gcc), *map(str, words)], tree / KVM)
    return program


def _write_sysreg_defs(tree: Path, into: Path) -> None:
    """Write the header that newer kernels generate from their table of system registers."""
    table = tree / "arch/arm64/tools"
    (into / "asm").mkdir()
    defs = _run(["awk", "-f", str(table / "gen-sysreg.awk"), str(table / "sysreg")], tree)
    (into / "asm/sysreg-defs.h").write_text(defs)


def _run(command: list[str], where: Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_guest(built: Path) -> dict[str, bytes]:
    """Return files for an initramfs: the programs, in /fp."""
    return {f"fp/{name}": (built / name).read_bytes() for name in PROGRAMS}


def probed(said: str) -> list[int]:
    """Return the vector lengths in bits from the output of sve-probe-vls."""
    assert "not ok" not in said, said
    return [8 * int(size) for size in re.findall(r"^# (\d+)$", said, re.MULTILINE)]
