"""Facts about the machine that makes and runs an emulated host."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

from pyvmm import host
from pyvmm.base.dirs import cache_dir
from pyvmm.host.confined.launch import refusal
from pyvmm.host.parts.tools import TOOLS_SUITE
from pyvmm.host.saved import everyone
from pyvmm.machine.facts import Fact, machine_facts

TOPIC = "outside"

# Programs that make an emulated host, and Debian's package of each.  QEMU is not among them: it
# always comes from the cache (or --host-qemu), because a saved host works with one build only.
PROGRAMS = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "mkfs.erofs": "erofs-utils",
}
# These fetch the programs above into the cache.
FETCHERS = {"apt-get": "apt", "dpkg-deb": "dpkg"}


def outer_facts() -> Iterator[Fact]:
    """Yield facts about this machine, its programs, and the cache."""
    yield from machine_facts(TOPIC)
    if platform.machine() == host.ARM64 and (reason := host.why_not_local()) is not None:
        yield Fact.of_error(TOPIC, "KVM", reason, fatal=False)
    fetch = all(shutil.which(program) for program in FETCHERS)
    for program, package in (PROGRAMS | FETCHERS).items():
        yield _program(program, package, fetch)
    yield from _confinement()
    yield Fact(TOPIC, "cache", str(cache_dir()))
    yield Fact(TOPIC, "emulated hosts ready to start", len(list(everyone())))


def _confinement() -> Iterator[Fact]:
    """Yield whether QEMU runs confined here."""
    name, value = "files that the emulated host sees", "those that running commands name"
    if (reason := refusal()) is None:
        yield Fact(TOPIC, name, value)
    else:
        remedy = "docs/security.md says what an escape from the emulated host can then reach"
        yield Fact(TOPIC, name, None, f"QEMU cannot be confined: {reason}", remedy)
    name = "QEMU's seccomp filter"
    without = [path.name for path, facts in everyone() if facts.get("sandbox") is False]
    if without:
        yield Fact(TOPIC, name, None, f"QEMU lacks it: {', '.join(without)}", "use Debian's QEMU")
    else:
        yield Fact(TOPIC, name, True)


def _program(program: str, package: str, fetch: bool) -> Fact:
    """Return a program's path, or the effect of its absence."""
    path = shutil.which(program)
    if path is not None:
        return Fact(TOPIC, program, path)
    if program in PROGRAMS and fetch:
        return Fact(TOPIC, program, f"not installed; pyvmm unpacks Debian {TOOLS_SUITE}'s")
    return Fact(TOPIC, program, None, f"{program} is not installed", f"apt-get install {package}")
