"""What ``pyvmm doctor`` says of the machine around an emulated host: can it make and run one?"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

from pyvmm import host
from pyvmm.base.dirs import cache_dir
from pyvmm.host.parts.tools import TOOLS_SUITE
from pyvmm.host.saved import everyone
from pyvmm.machine.facts import Fact, machine_facts

TOPIC = "outside"

# Programs that an emulated host is made with, and what of Debian has each.  Its QEMU is not
# among them: that is always the cache's own (or --host-qemu's), since a saved host fits one build.
PROGRAMS = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "mkfs.erofs": "erofs-utils",
}
# Without these nothing can be fetched: they are how the programs above get into the cache.
FETCHERS = {"apt-get": "apt", "dpkg-deb": "dpkg"}


def outer_facts() -> Iterator[Fact]:
    """This machine, the programs on it, and what is in the cache."""
    yield from machine_facts(TOPIC)
    if platform.machine() == host.ARM64 and (reason := host.why_not_local()) is not None:
        yield Fact.of_error(TOPIC, "KVM", reason, fatal=False)
    fetch = all(shutil.which(program) for program in FETCHERS)
    for program, package in (PROGRAMS | FETCHERS).items():
        yield _program(program, package, fetch)
    yield Fact(TOPIC, "cache", str(cache_dir()))
    yield Fact(TOPIC, "emulated hosts ready to start", len(list(everyone())))


def _program(program: str, package: str, fetch: bool) -> Fact:
    """Where a program is, or what its absence means."""
    path = shutil.which(program)
    if path is not None:
        return Fact(TOPIC, program, path)
    if program in PROGRAMS and fetch:
        return Fact(TOPIC, program, f"not installed; Debian {TOOLS_SUITE}'s goes into the cache")
    return Fact(TOPIC, program, None, f"{program} is not installed", f"apt-get install {package}")
