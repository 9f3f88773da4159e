"""A look into Debian's kernel: pyvmm's page tables, gdb's memory and drgn agree with the guest."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import linux
from tests.guests.debuggers import PATIENCE, gdb

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1200)]

KALLSYMS = re.compile(r"([0-9a-f]{16}) \w (\w+)")
HEAD = 0x1_0000
GZIP = b"\x1f\x8b"
SERVED = re.compile(r"target remote (\S+)")
LOOK = """
answer["banner"] = gdb.execute("x/s {banner}", to_string=True)
answer["threads"] = len(gdb.selected_inferior().threads())
gdb.execute("hbreak *{function}")
gdb.execute("continue")
answer["pc"] = number("$pc")
gdb.execute("delete")
answer["frames"] = gdb.execute("backtrace 3", to_string=True)
gdb.execute("detach")
"""
# For drgn's own Python, without debugging information: virtual addresses by drgn's page table walk
DRGN = """
import json, sys
import drgn
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
address = int(sys.argv[2], 16)
print(json.dumps({
    "platform": str(prog.platform), "banner": prog.read(address, 14).decode(),
    "release": prog["UTS_RELEASE"].string_().decode(),
}))
"""


@pytest.fixture(scope="module")
def shell(
    pyvmm_cmd: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[linux.Session]:
    initrd = tmp_path_factory.mktemp("look") / "initrd"
    initrd.write_bytes(linux.initramfs())
    command = [*pyvmm_cmd, "run", "-c", "2", "-m", "256", "--name", "look", "-i", str(initrd),
               str(linux.image("6.1"))]  # fmt: skip
    with linux.Session(command) as session:
        session.wait_for(linux.PROMPT)
        yield session


@pytest.fixture(scope="module")
def symbols(shell: linux.Session) -> dict[str, int]:
    """Return the addresses of some symbols.

    Functions are in the guest's kallsyms. Data is not: linux_banner is found in the Image, which
    Linux maps as a whole. Source: Linux, arch/arm64/kernel/vmlinux.lds.S: _stext is 64 KiB from
    the Image's beginning.
    """
    shown = shell.shell("grep -wE '_stext|__arm64_sys_execve' /proc/kallsyms")
    found = {name: int(value, 16) for value, name in KALLSYMS.findall(shown)}
    assert set(found) == {"_stext", "__arm64_sys_execve"}, shown
    content = linux.image("6.1").read_bytes()
    if content.startswith(GZIP):
        content = gzip.decompress(content)
    return {**found, "linux_banner": found["_stext"] - HEAD + content.index(b"Linux version 6")}


def test_linux_banner_is_where_the_page_tables_say(
    shell: linux.Session, symbols: dict[str, int], pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    banner = symbols["linux_banner"]
    saved = tmp_path / "look.snap"
    save = [*pyvmm_cmd, "save", "--resume", "look", str(saved)]
    subprocess.run(save, check=True, timeout=PATIENCE)

    def show(*options: str) -> dict[str, str]:
        command = [*pyvmm_cmd, "snapshot", "show", "--json", str(saved), *options]
        done = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    place = show("--translate", f"{banner:#x}")["address"]
    text = bytes.fromhex(show("--memory", f"{place},64")["bytes"])
    assert text.startswith(f"Linux version {shell.shell('uname -r')} ".encode())


def test_gdb_reads_the_banner_and_breaks_in_a_system_call(
    shell: linux.Session, symbols: dict[str, int], pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*pyvmm_cmd, "gdb", "look", "--serve"], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            match = SERVED.search(server.stderr.readline())
            assert match is not None
            shell.type(b"while :; do sleep 0.2; done\n")  # each is a process of the shell
            function = symbols["__arm64_sys_execve"]
            found = gdb(
                match[1], LOOK.format(banner=symbols["linux_banner"], function=function), tmp_path
            )
        finally:
            server.terminate()
            shell.type(b"\x03")
    assert "Linux version 6.1" in found["banner"]
    assert (found["threads"], found["pc"]) == (2, function)
    shell.wait_for(linux.PROMPT)
    assert shell.shell("echo alive") == "alive"  # the guest goes on


def test_drgn_reads_a_core_of_the_kernel(
    shell: linux.Session, symbols: dict[str, int], pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("drgn", reason="pip install drgn")
    core = tmp_path / "core"
    done = subprocess.run(
        [*pyvmm_cmd, "dump", "look", str(core)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "VMCOREINFO" not in done.stderr

    script = [sys.executable, "-c", DRGN, str(core), hex(symbols["linux_banner"])]
    read = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE)

    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)
    assert "AARCH64" in found["platform"]
    assert found["banner"] == "Linux version "
    assert found["release"] == shell.shell("uname -r")
