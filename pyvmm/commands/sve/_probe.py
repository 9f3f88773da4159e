"""Probes of hosts' SVE vector lengths: of this host, and saved ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pyvmm import host
from pyvmm.arm64 import vl
from pyvmm.base.computer import kind_of_machine
from pyvmm.errors import UsageError
from pyvmm.svecheck.probe import Probe

CPUS = Path("/sys/devices/system/cpu")
MIDR = "cpu[0-9]*/regs/identification/midr_el1"


def probe_here() -> Probe:
    """Probe this host.

    Raises: HostError, if this host has no KVM for arm64.
    """
    from pyvmm.kvm import sve
    from pyvmm.kvm.system import System

    with System.open() as system:
        vls = sve.host_vector_lengths(system)
    own = sve.own_vector_lengths()
    return Probe(
        kernel=f"Linux {os.uname().release}",
        machine=kind_of_machine() or "hardware, as far as can be told",
        emulated=host.describe_inside() is not None,
        midrs=_midrs(CPUS),
        vls=vls,
        prctl=own.prctl,
        rdvl=own.rdvl,
    )


def read_probes(files: Iterable[Path]) -> dict[str, Probe]:
    """Read saved probes, by the names of their files.

    Raises: UsageError, for a file that is not a probe, or is given twice.
    """
    probes: dict[str, Probe] = {}
    for file in files:
        if str(file) in probes:
            raise UsageError(f"{file}: the probe is given twice")
        probes[str(file)] = Probe.read(file)
    return probes


def shown(vls: vl.VlSet) -> str:
    """Write a host's lengths."""
    return vl.show(vls) or "no SVE"


def _midrs(cpus: Path) -> tuple[int, ...]:
    """Return the MIDR_EL1 of each kind of CPU."""
    return tuple(dict.fromkeys(int(path.read_text(), 16) for path in sorted(cpus.glob(MIDR))))
