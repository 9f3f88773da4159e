"""Instructions around PC, by capstone and by objdump."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pyvmm.debugger import disassembly
from pyvmm.debugger.disassembly import AFTER, BEFORE, Code, code_around, disassemble
from pyvmm.kvm import regs
from tests.conftest import TOOLS
from tests.debugger.client import BASE, SIZE, MadeUp

NOP, WFI, RET, UNDEFINED = 0xD503_201F, 0xD503_207F, 0xD65F_03C0, 0x0000_0000
PTRUE, ADD = 0x2518_E3E0, 0x9100_0421
PROGRAM = (NOP, PTRUE, WFI, ADD, UNDEFINED, RET, NOP, NOP, NOP)


def at(pc: int) -> Code | None:
    machine = MadeUp()
    machine.memory[: 4 * len(PROGRAM)] = struct.pack(f"<{len(PROGRAM)}I", *PROGRAM)
    machine.cpus[0].set_one_reg(regs.PC, pc)
    return code_around(machine.cpus[0], machine.read_physical)


def texts(code: Code | None) -> list[tuple[int, str]]:
    assert code is not None
    return [(word, text) for _, word, text in disassemble(code)]


def test_code_is_some_instructions_before_and_after_pc() -> None:
    code = at(BASE + 4 * BEFORE)

    assert code is not None
    assert (code.start, len(code.data)) == (BASE, 4 * (BEFORE + 1 + AFTER))
    assert Code.from_json(code.to_json()) == code


def test_code_ends_where_memory_ends() -> None:
    first, last = at(BASE), at(BASE + SIZE - 4)

    assert first is not None
    assert last is not None
    assert (first.start, len(first.data)) == (BASE, 4 * (1 + AFTER))
    assert len(last.data) == 4 * (BEFORE + 1)
    assert at(BASE + SIZE) is None


def test_capstone_and_objdump_show_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("capstone", reason="pip install 'pyvmm-arm64[disassembly]'")
    monkeypatch.setenv("PATH", f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    code = at(BASE + 8)
    by_capstone = texts(code)

    monkeypatch.setattr(disassembly, "_by_capstone", lambda code: None)
    by_objdump = texts(code)

    assert [word for word, _ in by_capstone] == list(PROGRAM[:7])
    known = [n for n, (word, _) in enumerate(by_capstone) if word != UNDEFINED]
    mnemonics = [[found[n][1].split()[0] for n in known] for found in (by_capstone, by_objdump)]
    assert mnemonics[0] == mnemonics[1] == ["nop", "ptrue", "wfi", "add", "ret", "nop"]


def test_instructions_have_no_text_without_a_disassembler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disassembly, "_by_capstone", lambda code: None)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert texts(at(BASE + 8))[:2] == [(NOP, ""), (PTRUE, "")]
