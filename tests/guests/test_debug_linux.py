"""A look into Debian's kernels: pyvmm's page tables, gdb and drgn agree with the guest.

The kernels have pages of 4 KiB and of 16 KiB. Debian has none with 64 KiB: test_debug_pages.py.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests import linux
from tests.guests.debuggers import PATIENCE, gdb, gdb_command

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(1200)]

KALLSYMS = re.compile(r"([0-9a-f]{16}) \w (\w+)")
HEAD = 0x1_0000
GZIP = b"\x1f\x8b"
SERVED = re.compile(r"target remote (\S+)")
AGAIN = """
gdb.execute("break *{function}")
gdb.execute("continue")
answer["pc"] = number("$pc")
gdb.execute("monitor save /tmp/x.snap")
gdb.execute("delete")
gdb.execute("detach")
"""
KERNELS: Final[dict[str, Callable[[], Path]]] = {
    "4 KiB": lambda: linux.image("6.1"),
    "16 KiB": lambda: linux.flavour("linux-image-arm64-16k", "trixie"),
}
TG1: Final = {"4 KiB": 2, "16 KiB": 1}  # Source: Arm ARM DDI 0487, D23.2 "TCR_EL1"
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


@pytest.fixture(scope="module", params=KERNELS)
def page(request: pytest.FixtureRequest) -> str:
    """Return the size of the kernel's pages."""
    return str(request.param)


@pytest.fixture(scope="module")
def image(page: str) -> Path:
    """Return the kernel."""
    return KERNELS[page]()


@pytest.fixture(scope="module")
def shell(
    image: Path, pyvmm_cmd: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[linux.Session]:
    initrd = tmp_path_factory.mktemp("look") / "initrd"
    initrd.write_bytes(linux.initramfs())
    command = [*pyvmm_cmd, "run", "-c", "2", "-m", "256", "--name", "look", "-i", str(initrd),
               str(image)]  # fmt: skip
    with linux.Session(command) as session:
        session.wait_for(linux.PROMPT)
        yield session


@pytest.fixture(scope="module")
def symbols(image: Path, shell: linux.Session) -> dict[str, int]:
    """Return the addresses of some symbols.

    Functions are in the guest's kallsyms. Data is not: linux_banner is found in the Image, which
    Linux maps as a whole. Source: Linux, arch/arm64/kernel/vmlinux.lds.S: _stext is 64 KiB from
    the Image's beginning.
    """
    shown = shell.shell("grep -wE '_stext|__arm64_sys_execve' /proc/kallsyms")
    found = {name: int(value, 16) for value, name in KALLSYMS.findall(shown)}
    assert set(found) == {"_stext", "__arm64_sys_execve"}, shown
    content = image.read_bytes()
    if content.startswith(GZIP):
        content = gzip.decompress(content)
    return {**found, "linux_banner": found["_stext"] - HEAD + content.index(b"Linux version 6")}


def test_linux_banner_is_where_the_page_tables_say(
    page: str,
    shell: linux.Session,
    symbols: dict[str, int],
    pyvmm_cmd: list[str],
    tmp_path: Path,
) -> None:
    banner = symbols["linux_banner"]
    saved = tmp_path / "look.snap"
    save = [*pyvmm_cmd, "save", "--resume", "look", str(saved)]
    subprocess.run(save, check=True, timeout=PATIENCE)

    def show(*options: str) -> dict[str, Any]:
        command = [*pyvmm_cmd, "snapshot", "show", "--json", str(saved), *options]
        done = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    tcr = int(show("--regs", "TCR_EL1")["state"]["vcpus"][0]["registers"]["TCR_EL1"], 16)
    assert tcr >> 30 & 3 == TG1[page]
    place = show("--translate", f"{banner:#x}")["address"]
    text = bytes.fromhex(show("--memory", f"{place},64")["bytes"])
    assert text.startswith(f"Linux version {shell.shell('uname -r')} ".encode())


@pytest.fixture
def place(pyvmm_cmd: list[str], shell: linux.Session) -> Iterator[str]:
    """Return where a debugger connects; the guest runs a program after the other meanwhile."""
    with subprocess.Popen(
        [*pyvmm_cmd, "gdb", "look", "--serve"], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            match = SERVED.search(server.stderr.readline())
            assert match is not None
            shell.shell("while :; do sleep 0.2; done &")  # each is a process of the shell
            yield match[1]
        finally:
            server.terminate()
    assert "alive" in shell.shell("kill $!; echo alive")  # the guest goes on
    shell.shell("wait")  # the shell has reported the end of its job


def test_gdb_reads_the_banner_breaks_in_a_system_call_and_attaches_again(
    place: str, symbols: dict[str, int], tmp_path: Path
) -> None:
    function = symbols["__arm64_sys_execve"]

    found = gdb(place, LOOK.format(banner=symbols["linux_banner"], function=function), tmp_path)
    again = gdb(place, AGAIN.format(function=function), tmp_path)

    assert "Linux version 6." in found["banner"]
    assert (found["threads"], found["pc"]) == (2, function)
    assert again["pc"] == function
    assert "run `pyvmm save look /tmp/x.snap` in another terminal" in again["printed"]


def test_guest_goes_on_after_gdb_is_killed(
    place: str, shell: linux.Session, symbols: dict[str, int], tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    function = symbols["__arm64_sys_execve"]
    command, environment = gdb_command(
        "-batch", "-ex", f"target remote {place}", "-ex", f"break *{function}", "-ex", "continue",
        "-ex", f"shell touch {ready}", "-ex", "shell sleep 999",
    )  # fmt: skip
    with subprocess.Popen(command, env=environment, start_new_session=True) as debugger:
        deadline = time.monotonic() + PATIENCE
        while not ready.exists():
            assert time.monotonic() < deadline
            assert debugger.poll() is None
            time.sleep(0.1)
        os.killpg(debugger.pid, signal.SIGKILL)
    assert shell.shell("uname -s") == "Linux"

    count = "answer['threads'] = len(gdb.selected_inferior().threads())"
    assert gdb(place, count, tmp_path)["threads"] == 2


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
