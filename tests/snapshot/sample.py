"""A state like that of a small machine, for tests that need no KVM."""

from __future__ import annotations

from pathlib import Path

from pyvmm.config import Config, SveRequest
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState, VcpuFeature
from pyvmm.layout import MIB, PVTIME, RAM_BASE, VMGENID
from pyvmm.machine.plan import Feature
from pyvmm.snapshot.state import (
    Area,
    Clock,
    Events,
    GicBlock,
    GicState,
    State,
    Taken,
    VcpuState,
)

VLS = frozenset({128, 256})
FEATURES = frozenset({VcpuFeature.PSCI_0_2, VcpuFeature.SVE})
MPIDR = regs.sysreg(3, 0, 0, 0, 5)
ZCR = regs.sysreg(3, 0, 1, 2, 0)
GENERATION_ID = Area(name=VMGENID.name, base=VMGENID.base, size=VMGENID.size)
NEEDED = (regs.PC, regs.PSTATE, regs.SVE_VLS)


def vcpu(number: int = 0) -> VcpuState:
    """Return a vCPU with patterns in its registers."""
    return VcpuState(
        id=number,
        features=FEATURES | {VcpuFeature.POWER_OFF} if number else FEATURES,
        vls=VLS,
        mp_state=MpState.STOPPED if number else MpState.RUNNABLE,
        events=Events(serror_pending=False, serror_has_esr=True, serror_esr=0x1234),
        pvtime=PVTIME.base + 64 * number,
        registers={
            **{regs.X(n): 0xFFFF_0000_0000_0000 + n for n in range(31)},
            regs.PC: 0x8008_0000,
            regs.PSTATE: 0x3C5,
            regs.SVE_VLS: 3,
            **{regs.Z(n): int.from_bytes(bytes([n + 1]) * 32, "little") for n in range(32)},
            **{regs.P(n): 0x5555_5555 ^ n for n in range(16)},
            regs.FFR(): 0xFFFF_FFFF,
            regs.FPCR: 0x300_0000,
            regs.TIMER_CTL: 1,
            regs.TIMER_CNT: 123456789,
            regs.TIMER_CVAL: 123456999,
            MPIDR: 0x8000_0000 + number,
            ZCR: 1,
            regs.PSCI_VERSION: 0x1_0001,
        },
    )


def state(vcpus: int = 2, memory: int = 16 * MIB) -> State:
    """Return the state of a machine with that many vCPUs and that much memory."""
    config = Config(image=Path("/images/guest.elf"), vcpus=vcpus, memory=memory, name="sample")
    return State(
        taken=Taken(
            time="2026-11-26T21:40:00Z",
            pyvmm="0.1.0",
            kernel="6.1.0-50-arm64",
            machine="emulated: QEMU 7.2.22 (TCG), -cpu max,sve2048=on",
            emulated=True,
            midr=0xF0510,
        ),
        clock=Clock(hz=62_500_000, virtual=123456789, real_ns=1_795_729_200_000_000_000),
        config=config,
        ipa_bits=32,
        features=frozenset({Feature.PAUTH, Feature.PVTIME}),
        memory=(
            Area(name="ram", base=RAM_BASE, size=memory),
            Area(name="pvtime", base=PVTIME.base, size=PVTIME.size),
        ),
        vcpus=tuple(vcpu(number) for number in range(vcpus)),
        gic=GicState(
            kind="gicv3",
            nr_irqs=256,
            blocks=(
                GicBlock(part="dist", vcpu=None, registers={0x0: 0x12, 0x8: 0x43B}),
                *(
                    GicBlock(part="redist", vcpu=number, registers={0x10100: 0x800_FFFF})
                    for number in range(vcpus)
                ),
            ),
        ),
        devices={
            "uart0": {"registers": {"IER": 1}, "fifo": [65], "line": [], "thr_emptied": True},
            "rtc": {"registers": {"MR": 0}, "offset": 0, "alarm_at": 0},
        },
    )


def configs() -> list[Config]:
    """Return Configs; in one of them each field differs from its default."""
    return [
        Config(image=Path("/a")),
        Config(
            image=Path("/b"), vcpus=3, memory=64 * MIB, ram_base=1 << 32, irqchip="gicv2",
            sve=SveRequest(vls=frozenset({128, 256})), params="x=1", console="virtio",
            initrd=Path("/i"), kaslr_seed=(1 << 64) - 1, timer_hz=1000, ttys=frozenset({1}),
            vcpu_affinity=frozenset({0, 1}), timeout_s=2, name="b",
        ),
    ]  # fmt: skip
