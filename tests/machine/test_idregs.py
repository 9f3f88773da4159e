"""ID registers that a guest reads, changed through KVM on the host's own kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pyvmm.arm64 import idrules, sysregs
from pyvmm.arm64.bits import Field
from pyvmm.arm64.idrules import Rule
from pyvmm.errors import HostError, UsageError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.vm import Vm
from pyvmm.machine.board import enable_capabilities, read_limits
from pyvmm.machine.idregs import set_id_registers
from pyvmm.machine.plan import Plan
from pyvmm.machine.vcpus import MachineVcpu, make_vcpus
from pyvmm.snapshot.hostlimits import TOGETHER

pytestmark = pytest.mark.kvm
SHA2 = "ID_AA64ISAR0_EL1.SHA2"


@contextmanager
def machine(vcpus: int = 2) -> Iterator[tuple[Vm, list[MachineVcpu]]]:
    """Make vCPUs with all features of this host."""
    with System.open() as system, ExitStack() as undo:
        limits = read_limits(system)
        features = limits.features & TOGETHER
        plan = Plan(vcpus=vcpus, memory=0, ipa_bits=40, vls=limits.vls, features=features)
        vm = undo.enter_context(system.create_vm(plan.ipa_bits))
        enable_capabilities(system, vm, plan)
        yield vm, make_vcpus(vm, plan, undo)


def value_of(vcpu: MachineVcpu, register: str, field: Field) -> int:
    return int(field.get(vcpu.get_one_reg(regs.lookup(register, sysregs.ENCODINGS))))


def others(register: str, field: Field, value: int) -> list[int]:
    """Return the values that a guest on this host could be given instead."""
    if idrules.rule(register, field.name) is Rule.NAME:
        return [value ^ 1]
    return [
        other
        for other in range(field.largest + 1)
        if other != value and not idrules.lacks(register, field, other, value)
    ]


def changes() -> list[tuple[str, Field, int]]:
    """Return every field that this kernel can change, with the next value it could have."""
    found = []
    with machine(1) as (vm, (vcpu,)):
        there = {regs.name(reg_id, sysregs.NAMES) for reg_id in vcpu.get_reg_list()}
        for reg_id, mask in vm.writable_id_bits().items():
            register = regs.name(reg_id, sysregs.NAMES)
            if register not in there or not idrules.is_identification(register):
                continue
            for field in idrules.fields(register):
                if idrules.is_by_feature(register, field.name) or mask & field.mask != field.mask:
                    continue
                value = value_of(vcpu, register, field)
                found += [(register, field, new) for new in others(register, field, value)[-1:]]
    return found


def test_every_field_that_kvm_can_change_is_changed_on_every_vcpu() -> None:
    asked = changes()
    if not asked:
        pytest.skip("this kernel changes no ID register: KVM does since Linux 6.7")
    refused = {}

    for register, field, value in asked:
        name = f"{register}.{field.name}"
        with machine() as (vm, vcpus):
            try:
                set_id_registers(vm, vcpus, {name: value})
            except HostError as error:
                refused[name] = error.message
            else:
                assert [value_of(vcpu, register, field) for vcpu in vcpus] == [value] * 2, name

    assert len(asked) > 40
    # KVM's mask of a register can hold bits that it then refuses: each such field has its error.
    assert all("this host's KVM refuses it: KVM_SET_ONE_REG" in why for why in refused.values())
    assert len(refused) < len(asked) // 4, refused


def test_several_fields_of_a_register_are_changed_together() -> None:
    with machine() as (vm, vcpus):
        if not vm.writable_id_bits():
            pytest.skip("this kernel changes no ID register")

        set_id_registers(vm, vcpus, {SHA2: 0, "ID_AA64ISAR0_EL1.SHA3": 0})

        isar0 = {field.name: field for field in idrules.fields("ID_AA64ISAR0_EL1")}
        assert value_of(vcpus[1], "ID_AA64ISAR0_EL1", isar0["SHA2"]) == 0
        assert value_of(vcpus[1], "ID_AA64ISAR0_EL1", isar0["SHA3"]) == 0
        assert value_of(vcpus[1], "ID_AA64ISAR0_EL1", isar0["AES"]) > 0


def test_cpu_can_have_another_name_where_kvm_allows_it() -> None:
    with System.open() as system:
        if not system.has(Cap.ARM_WRITABLE_IMP_ID_REGS):
            pytest.skip("this kernel fixes MIDR_EL1: KVM changes it since Linux 6.15")
    with machine() as (vm, vcpus):
        set_id_registers(vm, vcpus, {"MIDR_EL1.PartNum": 0xD40, "MIDR_EL1.Implementer": 0x41})

        midr = vcpus[1].get_one_reg(regs.lookup("MIDR_EL1", sysregs.ENCODINGS))
        assert (midr >> 24, midr >> 4 & 0xFFF) == (0x41, 0xD40)


def test_same_value_needs_no_support_of_the_kernel() -> None:
    with machine() as (vm, vcpus):
        field = idrules.find(SHA2)
        assert field is not None

        set_id_registers(vm, vcpus, {SHA2: value_of(vcpus[0], "ID_AA64ISAR0_EL1", field)})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({SHA2: 7}, "this host has less"),
        ({"ID_AA64MMFR0_EL1.ASIDBits": 0}, "cannot change the field"),
    ],
)
def test_refusal_names_the_field(asked: dict[str, int], words: str) -> None:
    with machine() as (vm, vcpus), pytest.raises(HostError) as refused:
        set_id_registers(vm, vcpus, asked)

    (name,) = asked
    assert name in refused.value.message
    assert words in refused.value.message


@pytest.mark.parametrize("name", ["ID_AA64ISAR0_EL1.NOPE", "SCTLR_EL1.M", "x.y"])
def test_unknown_field_is_refused(name: str) -> None:
    with machine() as (vm, vcpus), pytest.raises(UsageError, match="there is no field"):
        set_id_registers(vm, vcpus, {name: 0})
