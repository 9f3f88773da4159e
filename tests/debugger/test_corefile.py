"""Core files, read by pyelftools; drgn reads one of a Linux guest in tests/guests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from elftools.elf.elffile import ELFFile

from pyvmm.cli import Invocation, pyvmm
from pyvmm.debugger.corefile import Piece, find_vmcoreinfo, write_core
from pyvmm.kvm import regs
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.debugger.client import BASE, SIZE, MadeUp
from tests.snapshot.files import save_machine
from tests.snapshot.sample import ZCR, state

INFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffff800009e1c4c0\n"
WHOLE = [Piece(BASE, SIZE, [(BASE, BASE + SIZE)])]


def write(path: Path, machine: MadeUp) -> Any:
    with path.open("w+b") as file:
        return write_core(file.fileno(), machine.cpus, machine.vls, WHOLE, machine.read_physical)


def notes(path: Path) -> list[tuple[str, Any, bytes]]:
    with path.open("rb") as file:
        (segment,) = [s for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_NOTE"]
        file.seek(segment["p_offset"])
        data = file.read(segment["p_filesz"])
    found = []
    while data:
        name_size, size, kind = struct.unpack_from("<III", data)
        name = data[12 : 12 + name_size - 1].decode()
        start = 12 + (name_size + 3) // 4 * 4
        found.append((name, kind, data[start : start + size]))
        data = data[start + (size + 3) // 4 * 4 :]
    return found


def test_core_has_the_guests_memory_at_its_physical_address(tmp_path: Path) -> None:
    machine = MadeUp()
    machine.memory[0x3000:0x3005] = b"hello"
    path = tmp_path / "core"

    write(path, machine)

    with path.open("rb") as file:
        elf = ELFFile(file)
        assert (elf["e_type"], elf["e_machine"]) == ("ET_CORE", "EM_AARCH64")
        (load,) = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        assert (load["p_paddr"], load["p_memsz"], load["p_filesz"]) == (BASE, SIZE, SIZE)
        assert load["p_align"] == 0  # else crash takes it for a file of netdump
        assert load.data() == bytes(machine.memory)


def test_core_has_the_registers_of_each_vcpu(tmp_path: Path) -> None:
    machine = MadeUp()
    machine.cpus[1].set_one_reg(ZCR, 0)
    path = tmp_path / "core"

    write(path, machine)

    found = notes(path)
    assert [(name, kind) for name, kind, _ in found] == [
        ("CORE", 1), ("CORE", 2), ("LINUX", 0x405)] * 2  # fmt: skip
    status = found[3][2]
    assert len(status) == 392
    assert struct.unpack_from("<i", status, 32) == (2,)
    general = struct.unpack_from("<34Q", status, 112)
    assert general[:31] == tuple(0xFFFF_0000_0000_0000 + n for n in range(31))
    assert general[31:] == (0x8000_8000, 0x8008_0000, 0x3C5)
    assert found[1][2][:32] == b"\1" * 16 + b"\2" * 16
    assert struct.unpack_from("<II", found[1][2], 512) == (0, 0x300_0000)
    for note, length in ((found[2][2], 32), (found[5][2], 16)):
        size, most, vl, longest, flags = struct.unpack_from("<IIHHH", note)
        assert (size, most, vl, longest, flags) == (len(note), len(note), length, 32, 1)
        assert note[16 + length : 16 + 2 * length] == b"\2" * length
        fpsr = -(-(16 + length * 32 + 17 * length // 8) // 16) * 16
        assert struct.unpack_from("<II", note, fpsr) == (0, 0x300_0000)


def test_vmcoreinfo_of_a_linux_guest_is_a_note(tmp_path: Path) -> None:
    machine = MadeUp()
    machine.memory[0x4000 : 0x4000 + len(INFO)] = INFO
    machine.memory[0x6010 : 0x6010 + len(INFO)] = INFO  # not at the beginning of a page
    machine.memory[0x8000:0x8020] = b"OSRELEASE=but nothing else ".ljust(32, b"x")
    path = tmp_path / "core"

    assert write(path, machine).has_vmcoreinfo

    assert notes(path)[-1] == ("VMCOREINFO", 0, INFO)


@pytest.mark.parametrize("at", [0, SIZE - 4096])
def test_vmcoreinfo_without_an_end_is_bounded(at: int) -> None:
    machine = MadeUp()
    text = INFO + b"x" * 0x2_0000
    machine.memory[at:SIZE] = text[: SIZE - at]

    found = find_vmcoreinfo(WHOLE, machine.read_physical)

    assert len(found) <= 0x1_0000


def test_snapshot_becomes_a_core_file(tmp_path: Path) -> None:
    saved = state()
    with GuestMemory(RAM_BASE, saved.memory[0].size) as memory:
        memory.write(RAM_BASE + 0x5000, INFO)
        save_machine(tmp_path / "a.snap", saved, memory)
    out = tmp_path / "core"

    arguments = ["snapshot", "export", "--core", str(tmp_path / "a.snap"), str(out)]
    done = CliRunner().invoke(pyvmm, arguments, obj=Invocation(arguments))

    assert done.exit_code == 0, done.output
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.stat().st_blocks * 512 < 1 << 20  # sparse
    assert [kind for _, kind, _ in notes(out)] == [1, 2, 0x405, 1, 2, 0x405, 0]
    with out.open("rb") as file:
        loads = [s for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD"]
        assert [load["p_paddr"] for load in loads] == [area.base for area in saved.memory]
        assert loads[0].data()[0x5000 : 0x5000 + len(INFO)] == INFO


def test_core_keeps_what_a_vcpu_lacks_at_zero(tmp_path: Path) -> None:
    machine = MadeUp()
    (first, _) = machine.saved
    del first.state.registers[regs.FPSR]

    write(tmp_path / "core", machine)

    assert struct.unpack_from("<I", notes(tmp_path / "core")[1][2], 512) == (0,)
