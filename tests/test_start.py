"""The imports of a run of a Linux Image: no slow module that it does not need."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm import layout
from tests import programs

# A new process imports all of this, which takes long in a busy emulated host.
pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]

# The process of the console script; at its end it writes the modules it has imported. A confined
# process opens no file, so the file is open before.
DRIVER = """
import sys
from pyvmm.__main__ import main
file = open({out!r}, "w")
code, loaded = main(), sorted(sys.modules)
import json
with file:
    json.dump([code, loaded], file)
"""
# Slow modules (million instructions each, by -icount: elftools 180, rich 160, asyncio 180,
# importlib.metadata 140, logging 60, argparse 40), and modules for other purposes.
HEAVY = (
    "elftools", "rich", "asyncio", "importlib.metadata", "email", "logging", "argparse", "qemu",
    "subprocess", "tempfile", "random", "hashlib", "shutil", "lzma", "bz2", "concurrent.futures",
    "multiprocessing", "http", "xml", "unittest", "statistics", "distributed", "hypothesis",
    "dataclasses", "json", "traceback", "textwrap", "zlib", "tty", "inspect", "uuid", "datetime",
    "gettext", "locale", "urllib", "difflib",
)  # fmt: skip
NOT_FOR_A_RUN = (
    "pyvmm.snapshot", "pyvmm.svecheck", "pyvmm.sweep", "pyvmm.repro", "pyvmm.machine.registerdump",
    "pyvmm.svecheck.probe", "pyvmm.machine.trace", "pyvmm.report.perfetto", "pyvmm.host.client",
    "pyvmm.host.qemu", "pyvmm.arm64.idregs", "pyvmm.arm64.esr", "pyvmm.arm64.control",
    "pyvmm.arm64.fields", "pyvmm.arm64.sysregs", "pyvmm.boot.elf", "pyvmm.devices.virtio",
    "pyvmm.devices.diskfile", "pyvmm.machine.dirty", "pyvmm.machine.devices", "pyvmm.memory.map",
    "pyvmm.terminal.line", "pyvmm.terminal.pty", "pyvmm.base.files", "pyvmm.boot.wrapping",
    "pyvmm.boot.zstd", "pyvmm.boot.lz4", "pyvmm.boot.lzo", "pyvmm.boot.packings",
    "pyvmm.boot.magics", "pyvmm.kvm.hints", "pyvmm.memory.hugetlbfs", "pyvmm.control.server",
    "pyvmm.control.service", "pyvmm.control.wire", "pyvmm.commands._output", "pyvmm.sandbox._build",
    "pyvmm.sandbox.table", "pyvmm.sandbox.outside", "pyvmm.debugger", "pyvmm.control.debugging",
)  # fmt: skip


def linux_image(path: Path) -> Path:
    """Write a Linux Image whose first instruction ends the run.

    Source: Linux, Documentation/arch/arm64/booting.rst
    """
    begin = 0x1400_0010  # b .+64: over the header
    flags = 0xA  # little-endian, 4 KiB pages, anywhere
    header = struct.pack(
        "<IIQQQQQQ4sI", begin, 0, layout.KERNEL_OFFSET, 0x1000, flags, 0, 0, 0, b"ARM\x64", 0
    )
    exit_register = 0xD2A0_2062  # movz x2, #0x103, lsl #16
    path.write_bytes(header + struct.pack("<I", exit_register) + programs.words("store"))
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the modules that a run has imported at its end."""
    directory = tmp_path_factory.mktemp("start")
    out = directory / "modules.json"
    image = linux_image(directory / "Image")
    driver = DRIVER.format(out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", driver, "run", "-c", "1", "-m", "64", str(image)],
        env={**os.environ, "PYTHONPATH": str(Path(pyvmm.__file__).parents[1])},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(out.read_text())
    assert code == 0, done.stderr
    return list(modules)


@pytest.mark.parametrize("name", [*HEAVY, *NOT_FOR_A_RUN])
def test_run_of_a_linux_image_does_without(loaded: list[str], name: str) -> None:
    assert not [module for module in loaded if module == name or module.startswith(f"{name}.")]


def test_list_of_imports_contains_what_a_run_needs(loaded: list[str]) -> None:
    """The list is a run's; with an empty list every test above would pass."""
    wanted = {"click", "pyvmm.machine.machine", "pyvmm.machine.board", "pyvmm.kvm._kvm"}
    assert wanted <= set(loaded)
