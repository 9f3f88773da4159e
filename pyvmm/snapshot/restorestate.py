"""A machine that was just made becomes the one that was saved; its memory is there already.

The order is the kernel's, and that of the tables in classes.py and gic.py: registers, pending
exceptions, GIC, ITS, devices, and last which vCPUs are on.  Then everything is read back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pyvmm import layout
from pyvmm.devices.device import Device
from pyvmm.devices.kept import StateError
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import HostError, KvmError
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vgic import VgicV2
from pyvmm.machine.board import Board
from pyvmm.machine.plan import Plan
from pyvmm.snapshot import restoreorder
from pyvmm.snapshot.gic import gic_registers, restore_gic
from pyvmm.snapshot.restoreorder import Setting
from pyvmm.snapshot.state import State, VcpuState

SHOWN = 12  # lines of an error that lists registers


class Loss(NamedTuple):
    """A register that is not on a host as it was: missing, refused, or something else now."""

    vcpu: int
    reg_id: int
    reason: str
    missing: bool = False
    found: int | None = None  # what it is on that host, if it is there

    def __str__(self) -> str:
        return f"vCPU {self.vcpu}: {restoreorder.name(self.reg_id)} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What became of a restore: registers that were lost, as was allowed."""

    losses: tuple[Loss, ...] = ()
    gic: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The same, for people; one line for what several vCPUs share."""
        vcpus: dict[tuple[int, str], list[int]] = {}
        for loss in self.losses:
            vcpus.setdefault((loss.reg_id, loss.reason), []).append(loss.vcpu)
        for (reg_id, reason), numbers in vcpus.items():
            who = "every vCPU" if len(numbers) > 1 else f"vCPU {numbers[0]}"
            yield f"{restoreorder.name(reg_id)} of {who} {reason}"
        yield from self.gic


def plan_of(state: State) -> Plan:
    """The machine that a state is of, nothing left open."""
    config = state.config
    ram_end = config.ram_base + (config.memory or 0)
    return Plan(
        vcpus=len(state.vcpus),
        memory=config.memory or 0,
        ipa_bits=state.ipa_bits,
        vls=state.vls,
        features=state.features,
        windows=layout.windows((d.window_size() for d in config.devices), ram_end),
    )


def restore_state(
    board: Board, state: State, may_lose: Callable[[Loss], bool], *, force: bool = False
) -> RestoreReport:
    """Give the machine its state; memory is there, and no vCPU has run.

    ``may_lose`` says of which registers the guest goes on without; with ``force``, of any.

    Raises:
        HostError: something is not as it was saved, and not of what may be.
        StateError: a device cannot be as the snapshot says.
    """
    losses: list[Loss] = []
    for vcpu, saved in zip(board.vcpus, state.vcpus, strict=True):
        losses += write_registers(vcpu, saved)
        vcpu.set_vcpu_events(saved.events.for_kvm())
    gic = restore_gic(gic_registers(board), state.gic, board.irqchip)
    restore_devices(board, state)
    raise_lines(board)
    refused = {(loss.vcpu, loss.reg_id) for loss in losses}
    for vcpu, saved in zip(board.vcpus, state.vcpus, strict=True):
        losses += differences(vcpu, saved, {reg_id for n, reg_id in refused if n == vcpu.id})
    for vcpu, saved in zip(board.vcpus, state.vcpus, strict=True):
        vcpu.set_mp_state(saved.mp_state)
    _refuse([loss for loss in losses if not may_lose(loss)], gic, force)
    return RestoreReport(losses=tuple(losses), gic=tuple(gic))


def write_registers(vcpu: Vcpu, saved: VcpuState) -> list[Loss]:
    """Write a vCPU's registers in the order of their classes; returns what KVM refused."""
    values = {}
    for reg_id in restoreorder.in_order(saved.registers):
        setting = restoreorder.class_of(reg_id).setting
        if setting is not Setting.EARLY:
            clear = setting is Setting.CLEAR
            values[reg_id] = restoreorder.ones(reg_id) if clear else saved.registers[reg_id]
    refused = vcpu.set_regs(values)
    return [_refusal(vcpu, reg_id, error) for reg_id, error in refused.items()]


def _refusal(vcpu: Vcpu, reg_id: int, error: KvmError) -> Loss:
    if error.errno == errno.ENOENT:
        return Loss(vcpu.id, reg_id, "is not there on this host", missing=True)
    try:
        found = vcpu.get_one_reg(reg_id)
    except KvmError:
        found = None
    return Loss(vcpu.id, reg_id, f"is not taken by this host [{error.errno_name}]", found=found)


def differences(vcpu: Vcpu, saved: VcpuState, refused: Collection[int]) -> list[Loss]:
    """What reads back otherwise than it was written, and is not of what may."""
    losses = []
    read = vcpu.get_regs(reg_id for reg_id in saved.registers if reg_id not in refused)
    for reg_id, found in read.items():
        if isinstance(found, KvmError):
            raise found
        value = saved.registers[reg_id]
        if value != found and restoreorder.differs(reg_id, value, found):
            reason = f"was {value:#x} and reads back as {found:#x}"
            losses.append(Loss(vcpu.id, reg_id, reason, found=found))
    return losses


def restore_devices(board: Board, state: State) -> None:
    """Give each device its own account; a snapshot has exactly the devices of its Config.

    Raises: StateError.
    """
    here = {region.name: device for region, device in board.bus if isinstance(device, Device)}
    if here.keys() != state.devices.keys():
        odd = sorted(here.keys() ^ state.devices.keys())
        raise StateError(f"the snapshot's devices are not those of its machine: {', '.join(odd)}")
    for name in sorted(here, key=lambda name: not _is_first(here[name])):
        here[name].restore(state.devices[name], name)


def raise_lines(board: Board) -> None:
    """Raise the interrupt lines again that were raised: a GICv2 does not tell of its lines."""
    if isinstance(board.irqchip.gic, VgicV2):
        lines: list[Uart8250 | Pl031] = [*board.uarts, board.rtc]
        for device in lines:
            if device.is_raised:
                device.irq(True)


def _is_first(device: Device) -> bool:
    """Whether others depend on it: it says which memory there is."""
    return isinstance(device, VirtioMmio) and device.device.gives_memory


def _refuse(losses: list[Loss], gic: list[str], force: bool) -> None:
    lines = [*RestoreReport(losses=tuple(losses), gic=tuple(gic)).lines()]
    if not lines or force:
        return
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    raise HostError(
        "the machine is not as it was saved:\n  " + "\n  ".join([*lines[:SHOWN], *more]),
        hint="`pyvmm snapshot check FILE` tells more; --force goes on all the same",
    )
