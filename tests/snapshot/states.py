"""States of machines that differ in their parts: GIC, ITS, PMU, and devices that are in use."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyvmm.arm64 import sysregs
from pyvmm.config import CpuRequest
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import VcpuFeature
from pyvmm.machine.plan import Feature
from pyvmm.snapshot.gic import PARTS, registers_of
from pyvmm.snapshot.state import GicBlock, GicState, State
from tests.devices import live
from tests.snapshot import sample

NR_IRQS = 64
PMU = ("PMCR_EL0", "PMCNTENSET_EL0", "PMCCNTR_EL0", "PMSELR_EL0", "PMUSERENR_EL0", "PMOVSSET_EL0")


def documents(secret: Path) -> Iterator[dict[str, Any]]:
    """Yield one state for each kind of interrupt controller; ``secret`` is its disk and pmem.

    They have a PMU, and all devices in use; the last one has no PMU, and a legacy transport.
    """
    for number, kind in enumerate(PARTS):
        state = _with_gic(sample.state(), kind)
        yield _document(_with_pmu(state), secret, legacy=False)
        if number == len(PARTS) - 1:
            yield _document(state, secret, legacy=True)


def _with_gic(state: State, kind: str) -> State:
    """Return the state with every register of that GIC; each has another value."""
    blocks = []
    for part in PARTS[kind]:
        found = {
            register.number: 0x11 * n for n, register in enumerate(registers_of(part, NR_IRQS))
        }
        owners = range(len(state.vcpus)) if part.per_vcpu else [None]
        blocks += [GicBlock(part=part.name, vcpu=owner, registers=found) for owner in owners]
    config = state.config.replace(irqchip=kind)
    return state.replace(
        config=config, gic=GicState(kind=kind, nr_irqs=NR_IRQS, blocks=tuple(blocks))
    )


def _with_pmu(state: State) -> State:
    """Return the state with a PMU and its registers."""
    more = {regs.lookup(name, sysregs.ENCODINGS): 0x41 + n for n, name in enumerate(PMU)}
    vcpus = tuple(
        vcpu.replace(
            features=vcpu.features | {VcpuFeature.PMU_V3}, registers={**vcpu.registers, **more}
        )
        for vcpu in state.vcpus
    )
    return state.replace(
        vcpus=vcpus,
        features=state.features | {Feature.PMU},
        config=state.config.replace(cpu=CpuRequest(pmu=True)),
    )


def _document(state: State, secret: Path, *, legacy: bool) -> dict[str, Any]:
    """Return the state as JSON, with a virtio console and all devices in use."""
    devices = tuple(d for d in live.configs(secret) if not (legacy and d.modern))
    config = state.config.replace(
        devices=devices,
        console="virtio",
        virtio_transport="mmio-legacy" if legacy else "mmio",
        vcpu_affinity=frozenset({0}),
    )
    state = state.replace(config=config, devices=_devices(legacy), warnings=("a warning",))
    saved: dict[str, Any] = json.loads(json.dumps(state.document()))
    return saved


def _devices(legacy: bool) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(live.SIZE)
        with live.LiveDevices(Path(file.name), legacy=legacy) as made:
            made.use()
            return made.states()
