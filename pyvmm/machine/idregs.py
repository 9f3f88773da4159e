"""The ID registers that a guest reads, changed before its first instruction.

KVM holds one value for the whole VM, and checks each write against the host's CPU.
Source: Linux, Documentation/virt/kvm/api.rst, KVM_ARM_GET_REG_WRITABLE_MASKS;
arch/arm64/kvm/sys_regs.c, set_id_reg().
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyvmm.arm64 import idrules, sysregs
from pyvmm.arm64.bits import Field
from pyvmm.errors import HostError, KvmError, UsageError
from pyvmm.kvm import regs
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm


def set_id_registers(vm: Vm, vcpus: Sequence[Vcpu], asked: Mapping[str, int]) -> None:
    """Give the guest these fields, as {"ID_AA64ISAR0_EL1.SHA3": 0}; no vCPU has run.

    Raises:
        UsageError: there is no such field, or the value does not fit.
        HostError: the host has less, or KVM cannot change the field.
    """
    writable, boot = vm.writable_id_bits(), vcpus[0]
    there = frozenset(boot.get_reg_list())
    for reg_id, fields in _by_register(asked).items():
        # A register that KVM lacks reads as 0 in the guest.
        value = found = boot.get_one_reg(reg_id) if reg_id in there else 0
        for name, field, wanted in fields:
            _check(name, field, int(field.get(found)), wanted, writable.get(reg_id, 0))
            value = field.put(value, wanted)
        if value != found:
            _write(vcpus, reg_id, value, ", ".join(f"{name}={v:#x}" for name, _, v in fields))


def _by_register(asked: Mapping[str, int]) -> dict[int, list[tuple[str, Field, int]]]:
    """Group the fields by their register's id."""
    found: dict[int, list[tuple[str, Field, int]]] = {}
    for name, value in asked.items():
        field = idrules.find(name)
        if field is None:
            raise UsageError(f"`cpu.ids`: there is no field {name} of an ID register")
        if value > field.largest:
            raise UsageError(
                f"`cpu.ids`: {name}={value:#x}: the field holds at most {field.largest:#x}"
            )
        found.setdefault(_id(name), []).append((name, field, value))
    return found


def _id(name: str) -> int:
    return regs.lookup(name.partition(".")[0], sysregs.ENCODINGS)


def _check(name: str, field: Field, has: int, wanted: int, writable: int) -> None:
    """Check one field before KVM is asked, for an error that names it."""
    if has == wanted:
        return
    register = name.partition(".")[0]
    shown, here = (idrules.show(register, field, value) for value in (wanted, has))
    if idrules.lacks(register, field, wanted, has):
        raise HostError(
            f"`cpu.ids`: {name}={shown}: this host has less, {here}",
            hint="`pyvmm cpu explain` lists all that the host lacks; `pyvmm cpu common` finds a "
            "CPU that several hosts can give",
        )
    if writable & field.mask != field.mask:
        why = "" if writable else ", nor any other of that register"
        raise HostError(
            f"`cpu.ids`: {name}={shown}: it is {here} on this host, and its KVM cannot change "
            f"the field{why}",
            hint="`pyvmm cpu list` shows the fields that it can change; Linux 6.7 and later can",
        )


def _write(vcpus: Sequence[Vcpu], reg_id: int, value: int, words: str) -> None:
    for vcpu in vcpus:
        try:
            vcpu.set_one_reg(reg_id, value)
        except KvmError as error:
            raise HostError(
                f"`cpu.ids`: {words}: this host's KVM refuses it: {error.message}",
                hint="leave the field out; `pyvmm cpu list` shows this host's",
            ) from error
        if (found := vcpu.get_one_reg(reg_id)) != value:
            raise HostError(
                f"`cpu.ids`: {words}: vCPU {vcpu.id} reads {found:#x} back, and not {value:#x}"
            )
