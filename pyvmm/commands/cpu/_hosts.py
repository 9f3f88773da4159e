"""Hosts' CPUs: of this host, and of hosts in saved JSON of ``pyvmm doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyvmm.cpumodel.host import CpuHost, pauth_of, read_host
from pyvmm.errors import UsageError


def host_here() -> CpuHost:
    """Ask this host's KVM.

    Raises: HostError, if this host has no KVM for arm64.
    """
    from pyvmm.kvm import native
    from pyvmm.kvm.system import System
    from pyvmm.machine.board import read_limits
    from pyvmm.machine.plan import Feature
    from pyvmm.snapshot.hostlimits import registers_here, writable_here

    with System.open() as system:
        limits = read_limits(system)
        registers = {name: int(value, 16) for name, value in registers_here(system).items()}
        writable = {name: int(value, 16) for name, value in writable_here(system).items()}
    return CpuHost(
        registers=registers,
        writable=writable,
        vls=limits.vls,
        pauth=pauth_of(registers) if Feature.PAUTH in limits.features else "",
        counter_hz=native.counter_frequency(),
    )


def read_hosts(files: Iterable[Path]) -> dict[str, CpuHost]:
    """Read saved hosts, by the names of their files.

    Raises: UsageError, for a file that is not a host's JSON, or is given twice.
    """
    hosts: dict[str, CpuHost] = {}
    for file in files:
        if str(file) in hosts:
            raise UsageError(f"{file}: the host is given twice")
        hosts[str(file)] = read_host(file)
    return hosts
