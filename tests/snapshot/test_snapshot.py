"""A snapshot's registers, GIC and memory; and states that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pyvmm
from pyvmm.arm64 import sysregs
from pyvmm.errors import KvmError, UsageError
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.gic import CPU
from pyvmm.snapshot.snapshot import Snapshot
from pyvmm.snapshot.state import GicBlock, State, VcpuState
from tests.snapshot import sample
from tests.snapshot.files import noise, save_machine

ICC_PMR = sysregs.ENCODINGS["ICC_PMR_EL1"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.snap"


def changed(state: State, **of_vcpu_0: Any) -> State:
    """Return the sample state with a changed vCPU 0."""
    first = state.vcpus[0].replace(**of_vcpu_0)
    return state.replace(vcpus=(first, *state.vcpus[1:]))


def with_registers(state: State, registers: dict[int, int]) -> State:
    return changed(state, registers={**state.vcpus[0].registers, **registers})


def test_snapshot_has_registers_as_typed_values(path: Path) -> None:
    state = with_registers(sample.state(), {regs.lookup("ESR_EL1", sysregs.ENCODINGS): 0x5600_0007})
    save_machine(path, state)

    with Snapshot(path) as snapshot:
        vcpu = snapshot.vcpus[0]
        assert vcpu.vls == sample.VLS
        assert vcpu.z[3].b == (4,) * 32
        assert int(vcpu.ffr) == 0xFFFF_FFFF
        assert vcpu.sysreg["ESR_EL1"].EC.name == "SVC64"
        assert vcpu.reg["PC"] == 0x8008_0000
        assert vcpu.vl_in_use == 256
        assert snapshot.vcpus[1].get_mp_state() == MpState.STOPPED


def test_library_exports_snapshot(path: Path) -> None:
    save_machine(path, sample.state())

    with pyvmm.Snapshot(str(path)) as snapshot:
        assert snapshot.vcpus[0].p[2].value == 0x5555_5557


def test_read_of_a_missing_register_raises_kvm_error(path: Path) -> None:
    save_machine(path, sample.state())

    with Snapshot(path) as snapshot:
        with pytest.raises(KeyError):
            snapshot.vcpus[0].sysreg["TCR_EL1"]
        with pytest.raises(KvmError, match="ENOENT"):
            snapshot.vcpus[0].get_one_reg(regs.V(0))


def test_read_of_a_refused_register_raises_its_errno(path: Path) -> None:
    refused = regs.lookup("TCR_EL1", sysregs.ENCODINGS)
    save_machine(path, changed(sample.state(), refused={f"{refused:#x}": "EINVAL"}))

    with Snapshot(path) as snapshot:
        row = list(snapshot.vcpus[0].registers())[-1]
        assert (row.name, row.value, row.error) == ("TCR_EL1", None, "EINVAL")
        assert snapshot.registers(0)["errors"] == {"TCR_EL1": "EINVAL"}


def test_write_to_a_saved_register_is_refused(path: Path) -> None:
    save_machine(path, sample.state())

    with Snapshot(path) as snapshot, pytest.raises(TypeError, match="cannot be written"):
        snapshot.vcpus[0].reg["PC"] = 0


def test_registers_have_the_form_of_debug(path: Path) -> None:
    state = sample.state()
    blocks = (
        *state.gic.blocks,
        GicBlock(part=CPU.name, vcpu=0, registers={ICC_PMR: 0xF0}),
        GicBlock(part=CPU.name, vcpu=1, registers={ICC_PMR: 0x80}),
    )
    gic = state.gic.replace(blocks=blocks)
    save_machine(path, state.replace(gic=gic))

    with Snapshot(path) as snapshot:
        first, second = snapshot.registers(0), snapshot.registers(1)

    assert first["registers"]["ICC_PMR_EL1"] == "0x00000000000000f0"
    assert second["registers"]["ICC_PMR_EL1"] == "0x0000000000000080"
    assert first["registers"]["Z3"] == "0x" + "04" * 32
    assert (first["current_vl"], first["shown_vl"], first["vls"]) == (256, 256, [128, 256])
    assert (first["mp_state"], second["mp_state"]) == ("RUNNABLE", "STOPPED")


def test_registers_cuts_vectors_to_the_length_in_use(path: Path) -> None:
    save_machine(path, with_registers(sample.state(), {sample.ZCR: 0}))

    with Snapshot(path) as snapshot:
        assert snapshot.registers(0)["registers"]["Z3"] == "0x" + "04" * 16
        assert snapshot.registers(0, whole=True)["registers"]["Z3"] == "0x" + "04" * 32


def test_gic_parts_have_register_names(path: Path) -> None:
    save_machine(path, sample.state())

    with Snapshot(path) as snapshot:
        parts = {(part.part, part.vcpu): part.registers for part in snapshot.gic_parts()}

    assert parts["dist", None] == {"GICD_CTLR": 0x12, "GICD_IIDR": 0x43B}
    assert parts["redist", 1] == {"GICR_ISENABLER0": 0x800_FFFF}


def test_read_is_limited_to_memory_areas(path: Path) -> None:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        memory.write(RAM_BASE + 5, noise(9000))
        save_machine(path, sample.state(), memory)

    with Snapshot(path) as snapshot:
        assert snapshot.read(RAM_BASE + 5, 9000) == noise(9000)
        assert snapshot.read(RAM_BASE + MIB, 8) == bytes(8)
        for gpa, length in ((RAM_BASE - 1, 2), (RAM_BASE + 16 * MIB - 1, 2), (RAM_BASE, -1)):
            with pytest.raises(UsageError, match="are outside its memory"):
                snapshot.read(gpa, length)


def test_open_refuses_memory_outside_all_areas(path: Path) -> None:
    with GuestMemory(RAM_BASE + 16 * MIB, MIB) as memory:
        memory.write(RAM_BASE + 16 * MIB, b"x")
        save_machine(path, sample.state(), memory)

    with pytest.raises(UsageError, match=r"guest\.snap: memory at guest addresses 0x81000000 to"):
        Snapshot(path)


def without(vcpu: VcpuState, name: str) -> dict[int, int]:
    gone = regs.lookup(name, sysregs.ENCODINGS)
    return {reg_id: value for reg_id, value in vcpu.registers.items() if reg_id != gone}


@pytest.mark.parametrize("name", ["PC", "PSTATE", "MPIDR_EL1", "SVE_VLS", "ZCR_EL1"])
def test_open_refuses_a_state_without_a_required_register(path: Path, name: str) -> None:
    state = sample.state()
    save_machine(path, changed(state, registers=without(state.vcpus[0], name)))

    with pytest.raises(UsageError, match=rf"guest\.snap: vCPU 0: {name} is missing"):
        Snapshot(path)


@pytest.mark.parametrize(
    ("registers", "reason"),
    [
        ({regs.SVE_VLS: 7}, "its vector lengths differ from its SVE_VLS"),
        ({regs.Z(5): 1 << 256}, "Z5 is longer than the vector length"),
        ({regs.P(5): 1 << 32}, "P5 is longer than the vector length"),
        ({regs.FFR(): 1 << 32}, "FFR is longer than the vector length"),
    ],
)
def test_open_refuses_vectors_that_do_not_fit_the_vector_length(
    path: Path, registers: dict[int, int], reason: str
) -> None:
    save_machine(path, with_registers(sample.state(), registers))

    with pytest.raises(UsageError, match=reason):
        Snapshot(path)


def test_open_refuses_a_malformed_id_of_a_refused_register(path: Path) -> None:
    save_machine(path, changed(sample.state(), refused={"PC\x1b[2J": "EINVAL"}))

    with pytest.raises(UsageError, match="malformed register id"):
        Snapshot(path)


def test_open_of_a_damaged_state_names_the_file(path: Path) -> None:
    from pyvmm.snapshot.writer import write_snapshot

    write_snapshot(path, {"schema": 1}, [])

    with pytest.raises(UsageError, match=r"guest\.snap: its state is damaged"):
        Snapshot(path)
