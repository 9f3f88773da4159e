"""Save of a machine whose vCPUs are stopped.

The kernel demands the order.  First it writes an ITS's tables and pending LPIs to guest memory.
Then vCPUs, GIC and devices are read.  Memory comes last.
Source: Linux, Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Restore Sequence".
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pyvmm
from pyvmm import layout
from pyvmm.arm64 import sysregs
from pyvmm.base import computer
from pyvmm.base.files import PRIVATE, Replacement
from pyvmm.base.records import Record
from pyvmm.config import Config
from pyvmm.devices.device import Device
from pyvmm.errors import KvmError, UsageError, VmmError
from pyvmm.kvm import native, regs
from pyvmm.kvm.uapi import MpState, VcpuFeature
from pyvmm.machine.board import Board
from pyvmm.machine.machine import Machine
from pyvmm.machine.plan import Feature
from pyvmm.machine.vcpus import CNTVOFF_EL2, MachineVcpu, features_of
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot import restoreorder
from pyvmm.snapshot.gic import gic_registers, save_gic, save_tables
from pyvmm.snapshot.pages import changed
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.state import Area, Clock, Events, State, Taken, VcpuState
from pyvmm.snapshot.tags import read_tags, tag_memories
from pyvmm.snapshot.writer import MemoryToSave, finish, write_snapshot

DRAINS = 100  # attempts to complete the devices' requests


class Saved(Record):
    """The identity of the file that was written, and warnings for the user."""

    identity: str
    warnings: tuple[str, ...]


MIDR_EL1 = regs.lookup("MIDR_EL1", sysregs.ENCODINGS)


def save_state(
    board: Board, config: Config, virtual: int, memories: Mapping[str, GuestMemory]
) -> State:
    """Return a machine's state; no vCPU runs, and its virtual counter is ``virtual``.

    ``memories`` are the areas of memory to save, by name.

    The caller holds still().

    Raises:
        KvmError: the kernel refuses a read.
        VmmError: snapshots do not support a feature of the machine.
    """
    save_tables(board.irqchip)
    vcpus = tuple(save_vcpu(board, vcpu, virtual) for vcpu in board.vcpus)
    return State(
        taken=taken(board),
        clock=Clock(hz=native.counter_frequency(), virtual=virtual, real_ns=time.time_ns()),
        # With the values chosen for fields that were None.
        config=config.replace(
            vcpus=board.plan.vcpus, memory=board.plan.memory, irqchip=board.irqchip.name
        ),
        ipa_bits=board.plan.ipa_bits,
        features=board.plan.features,
        memory=tuple(
            Area(name=name, base=memory.base, size=memory.size) for name, memory in memories.items()
        ),
        vcpus=vcpus,
        gic=save_gic(gic_registers(board), board.irqchip.name),
        devices={r.name: d.state() for r, d in board.bus if isinstance(d, Device)},
        warnings=tuple(_warnings(vcpus)),
    )


def save(
    machine: Machine,
    path: Path,
    *,
    parent: Path | SnapshotFile | None = None,
    track: bool = False,
    fd: int | None = None,
) -> Saved:
    """Pause a machine and write a snapshot of it.

    A ``parent`` is an earlier snapshot of this machine, or the one it was restored from.  Then only
    pages that changed after it are written.  With ``track`` KVM logs dirty pages from now on, which
    slows the guest a little.  The next save with this snapshot as its parent is faster.  A
    confined process gets what it cannot open: the parent as a SnapshotFile, and ``fd``, an empty
    file whose owner will finish() it and call it ``path``.

    Raises:
        VmmError: the guest has ended, or a device's requests do not end.
        HostError: the kernel refuses a read, or the disk is full.
        UsageError: the file cannot be written, the parent belongs to another machine, or a device
            prevents ``track``.
    """
    _refuse_devices(machine.board)
    with machine.paused(), ExitStack() as undo:
        if machine.has_ended:
            raise VmmError("the guest has ended: it cannot be saved")
        board, dirty = machine.board, machine.dirty
        if track:
            _refuse_to_track(board)
        if machine.has_started:
            complete_accesses(board)
        undo.enter_context(still(board))
        tags = tag_memories(board, undo)
        areas = {**board.slots.saved, **tags}
        state = save_state(board, machine.config, machine.virtual_time, areas)
        dirty.collect()
        read_tags(board, tags)
        memories = list(areas.values())
        if parent is None:
            parts = [MemoryToSave(memory) for memory in memories]
        elif isinstance(parent, Path):
            parent = undo.enter_context(SnapshotFile.open(parent, trust=True))
        if parent is not None:
            _check_parent(state, parent)
            parts = [MemoryToSave(memory, changed(memory, parent, dirty)) for memory in memories]
        new = undo.enter_context(Replacement(path, PRIVATE)) if fd is None else None
        bare = identity = write_snapshot(
            path, state.document(), parts, parent=parent, fd=fd if new is None else new.fd
        )
        told: tuple[str, ...] = ()
        if new is not None:
            identity, told = finish(new.fd, path)
            new.commit()
        if track or dirty.since is not None:
            dirty.start(bare)
    return Saved(identity, (*state.warnings, *told))


def _refuse_devices(board: Board) -> None:
    """Refuse to save a machine with a device whose state is elsewhere."""
    for transport in board.virtio:
        device = transport.device
        if device.unsaveable:
            raise UsageError(
                f"a VM with {device.name} ({device.backing}) cannot be saved: {device.unsaveable}"
            )


def _refuse_to_track(board: Board) -> None:
    """Refuse to log writes if a device's back end writes without a log."""
    for transport in board.virtio:
        if transport.device.writes_unlogged:
            raise UsageError(
                f"`track`: {transport.device.name} writes guest memory without a log",
                hint="leave it out: a save with `parent` then compares all pages",
            )


def _check_parent(state: State, parent: SnapshotFile) -> None:
    """Check that the parent's machine has the same memory.

    Raises: UsageError.
    """
    if State.of(parent.document, str(parent.path)).memory != state.memory:
        raise UsageError(
            f"{parent.path}: this snapshot's machine has other memory than the VM to save",
            hint="use as `parent` a snapshot of the same VM, or the one it was restored from",
        )


def taken(board: Board) -> Taken:
    """Return the time, the host and the version of this save."""
    return Taken(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        pyvmm=pyvmm.__version__,
        kernel=os.uname().release,
        machine=computer.kind_of_machine() or "hardware, as far as is known",
        emulated=computer.describe_inside() is not None,
        midr=board.vcpus[0].get_one_reg(MIDR_EL1),
    )


def save_vcpu(board: Board, vcpu: MachineVcpu, virtual: int) -> VcpuState:
    """Return one vCPU's state, with every register that KVM lists."""
    registers: dict[int, int] = {}
    refused: dict[str, str] = {}
    for reg_id, found in vcpu.get_regs(vcpu.get_reg_list()).items():
        if isinstance(found, KvmError):
            refused[f"{reg_id:#x}"] = found.errno_name
        else:
            registers[reg_id] = found
    _stop_counters(registers, virtual)
    features = features_of(board.plan)
    return VcpuState(
        id=vcpu.id,
        features=features | {VcpuFeature.POWER_OFF} if vcpu.id else features,
        vls=vcpu.vls,
        mp_state=MpState(vcpu.get_mp_state()),
        events=Events.of(vcpu.get_vcpu_events()),
        pvtime=layout.PVTIME.base + vcpu.id * layout.PVTIME_SIZE
        if Feature.PVTIME in board.plan.features
        else None,
        registers=registers,
        refused=refused,
    )


@contextlib.contextmanager
def still(board: Board) -> Iterator[None]:
    """Complete the devices' requests and lock the devices; vCPUs are stopped.

    Input from outside waits.

    Raises: VmmError, if a device's requests do not end.
    """
    for _ in range(DRAINS):
        for transport in board.virtio:
            transport.device.drain()
        with ExitStack() as locks:
            for _, device in board.bus:
                if isinstance(device, Device):
                    locks.enter_context(device.lock)
            busy = [queue.name for t in board.virtio for queue in t.device.queues if queue.out]
            if not busy:
                yield
                return
    raise VmmError(f"the machine cannot be saved: requests in {', '.join(busy)} do not end")


def complete_accesses(board: Board) -> None:
    """Complete each MMIO access for which a vCPU's KVM_RUN has returned.

    Source: Linux, Documentation/virt/kvm/api.rst, KVM_RUN, on KVM_EXIT_MMIO.
    """
    for vcpu in board.vcpus:
        vcpu.kick()
        vcpu.run()


def _stop_counters(registers: dict[int, int], virtual: int) -> None:
    """Set the saved counters back to the moment when the guest stopped: they keep counting."""
    since = registers[regs.TIMER_CNT] + registers.get(CNTVOFF_EL2, 0) - virtual
    since &= (1 << 64) - 1  # the offset of a guest hypervisor may be negative
    registers[regs.TIMER_CNT] = virtual
    if regs.PTIMER_CNT in registers:
        registers[regs.PTIMER_CNT] = max(0, registers[regs.PTIMER_CNT] - since)


def _warnings(vcpus: tuple[VcpuState, ...]) -> Iterator[str]:
    """Yield warnings for the user."""
    unknown = {
        reg_id
        for vcpu in vcpus
        for reg_id in vcpu.registers
        if restoreorder.class_of(reg_id) is restoreorder.UNKNOWN
    }
    if unknown:
        ids = ", ".join(f"{reg_id:#x}" for reg_id in sorted(unknown)[:4])
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        yield (
            f"this pyvmm does not know the class of some KVM registers ({ids}{more}): they are "
            "saved, and restored last"
        )
    refused = {name for vcpu in vcpus for name in vcpu.refused}
    if refused:
        yield f"KVM lists registers but refuses to read them: {', '.join(sorted(refused)[:8])}"
