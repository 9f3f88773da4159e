"""The emulated host's root: a read-only erofs with arm64 Python and pyvmm's dependencies.

Python and its libraries come from Debian's arm64 packages.  Pure-Python dependencies are copied
from pyvmm's own environment, so both sides run the same versions.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cache_dir
from pyvmm.host.parts.debian import Package, Suite
from pyvmm.host.parts.tools import TOOLS_SUITE, Tool, packaged, python311, trees_dir
from pyvmm.host.progress import Progress

# Beside Python: libraries that pyvmm loads for packed images and snapshots.  And programs that
# scripts need and busybox lacks: bash, and the timeout of coreutils.
PACKAGES: Final = tuple(
    f"{name}:arm64"
    for name in (
        "python3.11", "python3-cffi-backend", "busybox-static", "libzstd1", "liblz4-1", "liblzo2-2",
        "bash", "coreutils",
    )
)  # fmt: skip
# Dependencies of python3.11 for maintainer scripts, and for modules that pyvmm never imports.
NOT_NEEDED: Final = re.compile(
    r"(dpkg|tar|media-types|readline-common|python3(-minimal)?|libpython3-stdlib|debconf"
    r"|libtirpc.*|libnsl2|libk.*|libgssapi.*|libdb5.3|libsqlite3-0|libcom-err2|gcc-12-base"
    r"|base-files|debianutils|lib(acl1|attr1|gmp10|selinux1|pcre2-8-0))$"
)
DISTRIBUTION: Final = "pyvmm-arm64"
# The root has Debian's arm64 backend of cffi. Only builds need the rest of the package.
COMPILED: Final = frozenset({"cffi"})

# Mount points for the user's files.
MOUNTPOINTS: Final = tuple(f"usr/{name}" for name in ("src", "local", "share"))
# busybox's programs for `pyvmm host shell` and `pyvmm host exec`.
APPLETS: Final = tuple(
    """ash awk basename cat chmod chown clear cmp comm cp cut date dd df diff dirname dmesg du echo
    env expr false find flock fold free getopt grep gunzip gzip head hexdump hostname id insmod kill
    killall less ln ls lsmod md5sum mkdir mkfifo mknod mktemp modprobe more mount mv nproc od paste
    pidof ps pwd readlink realpath rm rmdir rmmod sed seq setsid sh sha256sum sleep sort stat
    strings stty sync tac tail tar taskset tee test time timeout top touch tr true tty umount
    uname uniq uptime usleep vi wc which xargs xxd yes""".split()  # noqa: SIM905 - a table, one word an applet
)
SITE: Final = "usr/lib/python3/dist-packages"


# The programs of coreutils that the root takes; busybox has the others.
COREUTILS: Final = frozenset({"timeout"})  # busybox's lacks --foreground
# `pyvmm` in every shell of the host.  The agent itself runs `pyvmm ...` without it.  With -I and -S
# Python searches for modules among the host's own, not through 9p among the user's.
PYVMM: Final = f"""#!/usr/bin/python3 -IS
import sys

sys.path += ["/run/pyvmm/lib", "/{SITE}"]

from pyvmm.__main__ import entry

entry()
"""


def image(progress: Progress) -> Path:
    """Return the erofs image of /usr (a file); make it if the cache lacks it."""
    base = _python_tree(progress)
    dependencies = _dependencies(DISTRIBUTION)
    names = sorted(f"{d.metadata['Name']}=={d.version}" for d in dependencies)
    recipe = [Path(__file__).read_text(), (base / ".packages").read_text(), *names]
    key = hashlib.sha256("\n".join(recipe).encode())
    path = cache_dir("roots") / key.hexdigest()[:16]

    def build(into: Path) -> None:
        root = into / "root"
        shutil.copytree(base, root, symlinks=True)
        for distribution in dependencies:
            _copy_distribution(distribution, root / SITE)
        _add_links(root / "usr/bin")
        compile_python(root, "/", progress)
        packaged("mkfs.erofs", "erofs-utils", progress).run(
            ["--all-root", str(into / "usr.erofs"), str(root / "usr")]
        )
        shutil.rmtree(root)

    return progress.cached("making the emulated host's root", path, build) / "usr.erofs"


def busybox(progress: Progress) -> Path:
    """Return a static arm64 busybox."""
    return _python_tree(progress) / "usr/bin/busybox"


def compile_python(root: Path, prefix: str, progress: Progress) -> None:
    """Write .pyc files that Python 3.11 loads without a check of the sources."""
    compiler: Tool = python311(progress)
    compiler.run(
        ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
         "-s", str(root), "-p", prefix, str(root)]
    )  # fmt: skip


def _python_tree(progress: Progress) -> Path:
    def build(into: Path) -> None:
        source = Suite(TOOLS_SUITE)
        wanted = [
            p
            for p in source.closure(PACKAGES)
            if not NOT_NEEDED.match(p.name) and (p.arch == "arm64" or p.name.startswith("python"))
        ]
        source.unpack([p for p in wanted if p.name != "coreutils"], into, progress)
        _add_coreutils([p for p in wanted if p.name == "coreutils"], source, into, progress)
        _arrange(into)

    recipe = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    path = trees_dir() / f"python-arm64-{TOOLS_SUITE}-{recipe}"
    return progress.cached("getting Python for arm64", path, build)


def _add_coreutils(
    packages: Sequence[Package], source: Suite, tree: Path, progress: Progress
) -> None:
    """Add the few programs of coreutils that the root takes."""
    apart = tree / ".coreutils"
    source.unpack(packages, apart, progress)
    for name in COREUTILS:
        (found,) = apart.glob(f"**/bin/{name}")
        (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
        shutil.move(found, tree / "usr/bin" / name)
    shutil.rmtree(apart)


def _arrange(tree: Path) -> None:
    """Merge /lib, /bin and /sbin into /usr, as Debian's installer does; remove unused files."""
    for name in ("bin", "sbin", "lib"):
        merged = tree / "usr" / name
        merged.mkdir(parents=True, exist_ok=True)
        if (tree / name).is_dir():
            shutil.copytree(tree / name, merged, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(tree / name)
        (tree / name).symlink_to(f"usr/{name}")
    for unused in ("etc", "var", "usr/share", "usr/lib/python3.11/__phello__",
                    "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data",
                    "usr/lib/python3.11/distutils"):  # fmt: skip
        shutil.rmtree(tree / unused, ignore_errors=True)
    for gconv in tree.glob("usr/lib/*/gconv"):
        shutil.rmtree(gconv)
    for directory in (*MOUNTPOINTS, SITE):
        (tree / directory).mkdir(parents=True, exist_ok=True)


def _add_links(programs: Path) -> None:
    """Make the link python3, `pyvmm`, and a link to busybox for each applet."""
    (programs / "pyvmm").write_text(PYVMM)
    (programs / "pyvmm").chmod(0o755)
    (programs / "python3").unlink(missing_ok=True)
    (programs / "python3").symlink_to("python3.11")
    for applet in APPLETS:
        if not (programs / applet).exists():
            (programs / applet).symlink_to("busybox")


def _dependencies(name: str) -> list[metadata.Distribution]:
    """Return all pure-Python run-time dependencies of an installed distribution."""
    found: dict[str, metadata.Distribution] = {}

    def visit(requirement: str) -> None:
        if ";" in requirement and "extra ==" in requirement:
            return
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        wanted = re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""
        if not wanted or wanted in COMPILED or wanted in found:
            return
        try:
            distribution = metadata.distribution(wanted)
        except metadata.PackageNotFoundError:
            return  # its marker excludes this environment
        found[wanted] = distribution
        for below in distribution.requires or ():
            visit(below)

    for requirement in metadata.distribution(name).requires or ():
        visit(requirement)
    return [found[key] for key in sorted(found)]


def _copy_distribution(distribution: metadata.Distribution, site: Path) -> None:
    """Copy a distribution's Python files."""
    for file in distribution.files or ():
        if file.suffix != ".py" or ".." in file.parts:
            continue
        target = site / Path(*file.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(str(file.locate())), target)
