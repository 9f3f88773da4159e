"""Names and encodings of system registers, checked against an assembler and KVM's list."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.arm64 import sysregs

# Registers that binutils 2.40 lacks, or has under other names
NEWER_THAN_BINUTILS = {
    "ID_AA64PFR2_EL1",
    "ID_AA64FPFR0_EL1",
    "ID_AA64DFR2_EL1",
    "ID_AA64ISAR3_EL1",
    "ID_AA64MMFR3_EL1",
    "ID_AA64MMFR4_EL1",
    "SCTLR2_EL1",
    "SCTLR2_EL2",
    "TCR2_EL1",
    "TCR2_EL2",
    "PIRE0_EL1",
    "PIRE0_EL2",
    "PIR_EL1",
    "PIR_EL2",
    "POR_EL0",
    "POR_EL1",
    "POR_EL2",
    "HDFGRTR2_EL2",
    "HDFGWTR2_EL2",
    "HFGRTR2_EL2",
    "HFGWTR2_EL2",
    "HFGITR2_EL2",
}


def words(gcc: Path, where: Path, instructions: list[str]) -> list[int]:
    """Assemble instructions."""
    source, obj = where / "regs.s", where / "regs.o"
    source.write_text(".arch armv8.8-a+sve2+sme+memtag+pauth\n" + "\n".join(instructions) + "\n")
    subprocess.run([str(gcc), "-c", "-o", str(obj), str(source)], check=True)
    with obj.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        data = text.data()
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def generic(encoding: int) -> str:
    """Return the name of an encoding that every assembler accepts."""
    op0, op1, crn = encoding >> 14, encoding >> 11 & 7, encoding >> 7 & 15
    return f"S{op0}_{op1}_C{crn}_C{encoding >> 3 & 15}_{encoding & 7}"


def test_encodings_are_the_assemblers(cross_gcc: Path, tmp_path: Path) -> None:
    names = [name for name in sysregs.ENCODINGS if name not in NEWER_THAN_BINUTILS]
    # PMSWINC_EL0 is write-only, the rest can be read.
    reads = [f"msr {name}, x0" if name == "PMSWINC_EL0" else f"mrs x0, {name}" for name in names]
    raw = [
        instruction.replace(name, generic(sysregs.ENCODINGS[name]))
        for name, instruction in zip(names, reads, strict=True)
    ]

    assert words(cross_gcc, tmp_path, reads) == words(cross_gcc, tmp_path, raw)


def test_encodings_are_unique() -> None:
    assert len(sysregs.NAMES) == len(sysregs.ENCODINGS)


@pytest.mark.kvm
def test_registers_of_kvm_have_names_unless_unallocated() -> None:
    from pyvmm.kvm import regs
    from pyvmm.kvm.uapi import VcpuFeature
    from tests.kvm.guest import guest

    features = (VcpuFeature.PSCI_0_2, VcpuFeature.PMU_V3, VcpuFeature.SVE)
    with guest("spin", features=features) as made:
        made.vcpu.finalize(VcpuFeature.SVE)
        listed = [reg for reg in made.vcpu.get_reg_list() if regs.group(reg) == regs.SYSREG]

    shown = {regs.name(reg, sysregs.NAMES): regs.fields(reg) for reg in listed}
    # KVM lists the whole space of ID registers: op0 3, op1 0, CRn 0
    unnamed = [
        name
        for name, fields in shown.items()
        if name.startswith(("S2_", "S3_")) and fields[:3] != (3, 0, 0)
    ]

    assert unnamed == []
