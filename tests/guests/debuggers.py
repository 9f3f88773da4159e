"""gdb and lldb for tests: they run scripts, whose answers are JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from pyvmm.host.progress import Progress
from tests import tools

PATIENCE: Final = 240  # seconds: an emulated host starts in less

# Before each script: what it finds goes to `answer`.
PROLOGUE: Final = """
import gdb, json
answer = {}
def number(text):
    return int(gdb.parse_and_eval(text)) & (1 << 64) - 1
def lanes(text):
    value = gdb.parse_and_eval(text)
    low, high = value.type.range()
    return [int(value[n]) for n in range(low, high + 1)]
def memory(address, length):
    return bytes(gdb.selected_inferior().read_memory(address, length)).hex()
"""


def symbols(elf: Path) -> dict[str, int]:
    """Return the addresses of an ELF file's symbols, by name."""
    with elf.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {one.name: int(one["st_value"]) for one in table.iter_symbols()}


def gdb_command(*options: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs gdb, and its environment."""
    tool = tools.gdb(Progress())
    usual = ["-nx", "-ex", "set architecture aarch64", "-ex", f"set remotetimeout {PATIENCE}"]
    return [*tool.command, *usual, *options], {**os.environ, **tool.environment}


def gdb(
    place: str, script: str, where: Path, elf: Path | None = None, timeout_s: float = 2 * PATIENCE
) -> dict[str, Any]:
    """Run a Python script in a gdb that is connected to a place; return its answer."""
    path, out = where / "script.py", where / "answer.json"
    out.unlink(missing_ok=True)
    end = f"\nwith open({str(out)!r}, 'w') as file:\n    json.dump(answer, file)\n"
    path.write_text(PROLOGUE + script + end)
    options = ["-batch", "-ex", f"target remote {place}", "-x", str(path)]
    command, environment = gdb_command(*([str(elf)] if elf else []), *options)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
    assert out.exists(), done.stdout + done.stderr
    return {**json.loads(out.read_text()), "printed": done.stdout + done.stderr}
