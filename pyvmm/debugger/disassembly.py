"""A few instructions around PC, by capstone or by binutils' objdump, whichever there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Final

from pyvmm.arm64.translation import Read, translate
from pyvmm.base.records import Record
from pyvmm.debugger.addresses import Cpu, regime_of
from pyvmm.errors import VmmError
from pyvmm.kvm import regs

BEFORE, AFTER = 3, 4  # instructions that are shown
INSTRUCTION: Final = 4  # bytes
OBJDUMPS: Final = ("aarch64-linux-gnu-objdump", "objdump")
PATIENCE_S: Final = 10.0
_LINE: Final = re.compile(r"\s*([0-9a-f]+):\s+([0-9a-f]{8})\s+(.+)")


class Code(Record):
    """Instructions around a vCPU's PC; A64 is little-endian, whatever the data is."""

    pc: int
    start: int
    data: bytes

    def to_json(self) -> dict[str, str]:
        """Return a value for JSON."""
        return {"pc": f"{self.pc:#x}", "start": f"{self.start:#x}", "bytes": self.data.hex()}

    @classmethod
    def from_json(cls, value: Mapping[str, str]) -> Code:
        """Return the code of such a value.  Raises: LookupError, ValueError, TypeError."""
        return cls(int(value["pc"], 16), int(value["start"], 16), bytes.fromhex(value["bytes"]))


def code_around(cpu: Cpu, read: Read) -> Code | None:
    """Return the instructions around a vCPU's PC, as far as they are mapped; None if PC is not.

    Raises: VmmError, if PC cannot be read.
    """
    pc = cpu.get_one_reg(regs.PC)
    start, data = pc, b""
    try:
        regime = regime_of(cpu)
        for n in range(-BEFORE, AFTER + 1):
            at = pc + n * INSTRUCTION
            try:
                word = read(translate(at, regime, read).address, INSTRUCTION)
            except VmmError:
                if n >= 0:
                    break
                start, data = pc, b""  # a gap
                continue
            start = at if not data else start
            data += word
    except VmmError:
        return None
    return Code(pc, start, data) if len(data) > pc - start else None


def disassemble(code: Code) -> Iterator[tuple[int, int, str]]:
    """Yield the address, the word and the text of each instruction; without a tool no text."""
    texts = _by_capstone(code)
    if texts is None:
        texts = _by_objdump(code)
    for at in range(0, len(code.data) - INSTRUCTION + 1, INSTRUCTION):
        word = int.from_bytes(code.data[at : at + INSTRUCTION], "little")
        yield code.start + at, word, texts.get(code.start + at, "")


def _by_capstone(code: Code) -> dict[int, str] | None:
    """Return the texts by address; None without capstone."""
    try:
        import capstone
    except ImportError:
        return None
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    decoder.skipdata = True
    return {
        address: f"{name} {operands}".rstrip()
        for address, _, name, operands in decoder.disasm_lite(code.data, code.start)
    }


def _by_objdump(code: Code) -> dict[int, str]:
    """Return the texts by address; none without an objdump that knows AArch64."""
    found = next((path for name in OBJDUMPS if (path := shutil.which(name))), None)
    if found is None:
        return {}
    with tempfile.NamedTemporaryFile() as file:
        file.write(code.data)
        file.flush()
        options = ["-D", "-b", "binary", "-m", "aarch64", f"--adjust-vma={code.start:#x}"]
        try:
            done = subprocess.run(
                [found, *options, file.name],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            return {}
    lines = map(_LINE.fullmatch, done.stdout.splitlines())
    return {int(m[1], 16): " ".join(m[3].split()) for m in lines if m is not None}
