"""A look into Debian's kernel with its debugging information, by drgn, crash and gdb.

The information is that of the cloud flavour, which is the smallest: 260 MB to download.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.progress import Progress
from tests import linux, tools
from tests.guests.debuggers import PATIENCE, gdb

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(2400)]

FLAVOUR = ("linux-image-cloud-arm64", "bookworm")
COMM = 15  # characters of task_struct.comm; /proc has more of a kernel thread's name
CRASH_S = 1800  # seconds: QEMU's user mode runs crash
LIST_TASKS = "for p in /proc/[0-9]*; do read name <$p/comm; echo ${p#/proc/} $name; done"
DRGN = """
import json, sys
import drgn
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
print(json.dumps({
    "tasks": {task.pid.value_(): task.comm.string_().decode() for task in for_each_task(prog)},
    "banner": prog["linux_banner"].string_().decode(),
    "calls": [[frame.name for frame in prog.stack_trace(cpu_curr(prog, n))] for n in range(2)],
}))
"""
BOOT = """
answer["mmu"] = [number("$SCTLR_EL1") & 1]
answer["entry"] = number("$pc")
gdb.execute("hbreak *start_kernel")
gdb.execute("continue")
gdb.execute("delete")
answer["pc"] = [number("$pc")]
answer["mmu"].append(number("$SCTLR_EL1") & 1)
answer["banner"] = gdb.execute("x/s &linux_banner", to_string=True)
gdb.execute("hbreak *do_execveat_common")
gdb.execute("continue")
gdb.execute("delete")
answer["pc"].append(number("$pc"))
frame, calls = gdb.newest_frame(), []
while frame is not None:
    calls.append(frame.name())
    frame = frame.older()
answer["calls"] = calls
gdb.execute("break *do_exit")
gdb.execute("continue")
gdb.execute("delete")
answer["pc"].append(number("$pc"))
gdb.execute("detach")
"""


@pytest.fixture(scope="module")
def files() -> tuple[Path, Path, Path]:
    """Return the kernel's Image, vmlinux and System.map."""
    directory = linux.debug_files(*FLAVOUR)
    (vmlinux,), (symbols,) = directory.glob("vmlinux-*"), directory.glob("System.map-*")
    return linux.flavour(*FLAVOUR), vmlinux, symbols


@pytest.fixture(scope="module")
def command(
    files: tuple[Path, Path, Path], pyvmm_cmd: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    initrd = tmp_path_factory.mktemp("vmlinux") / "initrd"
    initrd.write_bytes(linux.initramfs())
    return [*pyvmm_cmd, "run", "-c", "2", "-m", "256", "-i", str(initrd), str(files[0])]


@pytest.fixture(scope="module")
def shell(command: list[str]) -> Iterator[linux.Session]:
    with linux.Session([*command, "--name", "look"]) as session:
        session.wait_for(linux.PROMPT)
        session.shell("sleep 9999 &")
        yield session


@pytest.fixture(scope="module")
def core(
    shell: linux.Session, pyvmm_cmd: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("core") / "core"
    subprocess.run([*pyvmm_cmd, "dump", "look", str(path)], check=True, timeout=PATIENCE)
    return path


@pytest.fixture(scope="module")
def tasks(shell: linux.Session, core: Path) -> dict[int, str]:
    """Return the guest's own list of its tasks, without those that come and go."""
    lines = (line.split(maxsplit=1) for line in shell.shell(LIST_TASKS).splitlines())
    return lasting({int(pid): name[:COMM] for pid, name in lines})


def lasting(tasks: dict[int, str]) -> dict[int, str]:
    return {pid: name for pid, name in tasks.items() if not name.startswith("kworker")}


def test_drgn_lists_the_tasks_and_their_calls(
    files: tuple[Path, Path, Path], core: Path, tasks: dict[int, str], shell: linux.Session
) -> None:
    pytest.importorskip("drgn", reason="pip install drgn")
    script = [sys.executable, "-c", DRGN, str(core), str(files[1])]

    done = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert lasting({int(pid): name for pid, name in found["tasks"].items()}) == tasks
    assert tasks[1] == "sh"
    assert "sleep" in tasks.values()
    assert found["banner"].startswith(f"Linux version {shell.shell('uname -r')} ")
    for calls, first in zip(
        found["calls"], ("start_kernel", "secondary_start_kernel"), strict=True
    ):
        assert first in calls
        assert "do_idle" in calls


def test_crash_lists_the_tasks_and_their_calls(
    files: tuple[Path, Path, Path], core: Path, tasks: dict[int, str], tmp_path: Path
) -> None:
    (sleep,) = (pid for pid, name in tasks.items() if name == "sleep")
    commands = tmp_path / "commands"
    commands.write_text(f"ps\nbt -a\nbt {sleep}\nquit\n")
    tool = tools.crash(Progress())

    done = subprocess.run(
        [*tool.command, "-s", "-i", str(commands), str(files[1]), str(core)],
        env={**os.environ, **tool.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CRASH_S,
    )

    shown = done.stdout
    listed = {
        int(match[1]): match[2]
        for match in re.finditer(
            r"^>? +(\d+) +\d+ +\d +[0-9a-f]{16} .* (\S+)$", shown, re.MULTILINE
        )
    }
    assert lasting({pid: name.strip("[]") for pid, name in listed.items() if pid}) == tasks, shown
    for name in ("start_kernel", "secondary_start_kernel", "do_nanosleep"):
        assert re.search(rf"^ #\d+ \[[0-9a-f]{{16}}\] {name} at ", shown, re.MULTILINE), shown


def test_backtrace_names_calls_by_the_guests_own_table_and_shows_instructions(
    shell: linux.Session, pyvmm_cmd: list[str]
) -> None:
    ask = [*pyvmm_cmd, "debug", "-n", "look", "--backtrace", "--kallsyms"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == 0, done.stderr
    for name in ("start_kernel", "secondary_start_kernel", "do_idle"):
        match = re.search(rf"0x([0-9a-f]{{16}})  {name}\+0x([0-9a-f]+)", done.stdout)
        assert match is not None, done.stdout
        start = int(match[1], 16) - int(match[2], 16)
        assert shell.shell(f"grep -w {name} /proc/kallsyms").startswith(f"{start:016x} ")
    assert "=>" in done.stdout


def test_gdb_breaks_in_start_kernel_before_the_mmu_is_on_and_later(
    command: list[str], files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    place = tmp_path / "gdb"
    where = [f"--gdb={place}", "--gdb-wait", "-p", "nokaslr"]
    with linux.Session([*command, "--name", "boot", *where]) as session:
        deadline = time.monotonic() + PATIENCE
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = gdb(str(place), BOOT, tmp_path, files[1])
        session.wait_for(linux.PROMPT)  # the guest goes on

    addresses = system_map(files[2])
    names = ("start_kernel", "do_execveat_common", "do_exit")
    assert found["mmu"] == [0, 1]
    for pc, name in zip(found["pc"], names, strict=True):
        (start,) = (at for symbol, at in addresses.items() if symbol.partition(".")[0] == name)
        assert pc - start in (0, 8)  # gdb leaves out the instructions before DWARF's entry
    assert "Linux version 6.1" in found["banner"]
    assert "__arm64_sys_execve" in found["calls"]


def system_map(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: int(address, 16) for address, _, name in lines}
