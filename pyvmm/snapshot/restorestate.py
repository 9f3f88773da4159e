"""Restore of a machine's state into new hardware, whose memory is restored already.

The kernel demands the order: registers (restoreorder.py), pending exceptions, GIC and ITS
(gic.py), devices, and last which vCPUs are on.  Then registers are read back and compared.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator

from pyvmm import layout
from pyvmm.base.records import Record
from pyvmm.devices.device import Device
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.state import StateError
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import HostError, KvmError
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vgic import VgicV2
from pyvmm.machine.board import Board
from pyvmm.machine.plan import Plan
from pyvmm.snapshot import restoreorder
from pyvmm.snapshot.gic import gic_registers, restore_gic, values_of
from pyvmm.snapshot.restoreorder import Setting
from pyvmm.snapshot.state import State, VcpuState

SHOWN = 12  # registers that an error lists


class Loss(Record):
    """A register that a host cannot restore: it is missing, refused, or reads back changed."""

    vcpu: int
    reg_id: int
    reason: str
    missing: bool = False
    found: int | None = None  # its value on that host, if it exists there

    def __str__(self) -> str:
        return f"vCPU {self.vcpu}: {restoreorder.name(self.reg_id)} {self.reason}"


class RestoreReport(Record, kw_only=True):
    """The registers that a restore left out, where that was allowed.

    ``harmless`` are the losses that the guest does not notice.
    """

    losses: tuple[Loss, ...] = ()
    harmless: tuple[Loss, ...] = ()
    gic: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield the report as text, with one line for all harmless losses.

        A loss that several vCPUs share has one line.
        """
        vcpus: dict[tuple[int, str], list[int]] = {}
        for loss in self.losses:
            vcpus.setdefault((loss.reg_id, loss.reason), []).append(loss.vcpu)
        for (reg_id, reason), numbers in vcpus.items():
            vcpu = "every vCPU" if len(numbers) > 1 else f"vCPU {numbers[0]}"
            yield f"{restoreorder.name(reg_id)} of {vcpu} {reason}"
        yield from self.gic
        if self.harmless:
            names = dict.fromkeys(restoreorder.name(loss.reg_id) for loss in self.harmless)
            yield f"{', '.join(names)}: harmless to the guest"


def plan_of(state: State) -> Plan:
    """Return the Plan of the machine that was saved."""
    config = state.config
    ram_end = config.ram_base + (config.memory or 0)
    return Plan(
        vcpus=len(state.vcpus),
        memory=config.memory or 0,
        ipa_bits=state.ipa_bits,
        vls=state.vls,
        features=state.features,
        vmgenid=any(area.name == layout.VMGENID.name for area in state.memory),
        windows=layout.windows((d.window_size() for d in config.devices), ram_end),
    )


def restore_state(
    board: Board, state: State, may_lose: Callable[[Loss], bool], *, force: bool = False
) -> RestoreReport:
    """Restore the machine's state; its memory is restored, and no vCPU has run.

    ``may_lose`` returns whether the guest can run without a register.  With ``force`` it runs
    without any of them.

    Raises:
        HostError: a register is lost that the guest needs.
        StateError: a device cannot take its saved state.
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
    needed = tuple(loss for loss in losses if not may_lose(loss))
    harmless = tuple(loss for loss in losses if loss not in needed)
    _refuse(RestoreReport(losses=needed, gic=tuple(gic)), force)
    return RestoreReport(losses=needed, harmless=harmless, gic=tuple(gic))


def write_registers(vcpu: Vcpu, saved: VcpuState) -> list[Loss]:
    """Write a vCPU's registers in restore order, and return those that KVM refused."""
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
        return Loss(vcpu.id, reg_id, "is missing on this host", missing=True)
    try:
        found = vcpu.get_one_reg(reg_id)
    except KvmError:
        found = None
    return Loss(vcpu.id, reg_id, f"is refused by this host [{error.errno_name}]", found=found)


def differences(vcpu: Vcpu, saved: VcpuState, refused: Collection[int]) -> list[Loss]:
    """Return registers that read back changed, unless their class allows it."""
    losses = []
    read = vcpu.get_regs(reg_id for reg_id in saved.registers if reg_id not in refused)
    for reg_id, found in values_of(read).items():
        value = saved.registers[reg_id]
        if value != found and restoreorder.differs(reg_id, value, found):
            reason = f"was {value:#x} and reads back as {found:#x}"
            losses.append(Loss(vcpu.id, reg_id, reason, found=found))
    return losses


def restore_devices(board: Board, state: State) -> None:
    """Restore each device; a snapshot has exactly the devices of its Config.

    Raises: StateError.
    """
    here = {region.name: device for region, device in board.bus if isinstance(device, Device)}
    if here.keys() != state.devices.keys():
        odd = sorted(here.keys() ^ state.devices.keys())
        raise StateError(f"the snapshot's devices differ from its config's: {', '.join(odd)}")
    for name in sorted(here, key=lambda name: not _is_first(here[name])):
        here[name].restore(state.devices[name], name)


def raise_lines(board: Board) -> None:
    """Raise the interrupt lines that were high: a GICv2 does not report their level on save."""
    if isinstance(board.irqchip.gic, VgicV2):
        lines: list[Uart8250 | Pl031] = [*board.uarts, board.rtc]
        for device in lines:
            if device.is_raised:
                device.irq(True)


def _is_first(device: Device) -> bool:
    """Return whether other devices depend on the device: it determines which memory exists."""
    return isinstance(device, VirtioMmio) and device.device.gives_memory


def _refuse(report: RestoreReport, force: bool) -> None:
    lines = [*report.lines()]
    if not lines or force:
        return
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    raise HostError(
        "this host cannot restore the machine's state:\n  " + "\n  ".join([*lines[:SHOWN], *more]),
        hint="use `force` to run the guest with those differences",
    )
