"""Debian's gdb, connected to guests by ``pyvmm run --gdb`` and ``pyvmm gdb``."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.progress import Progress
from tests import tools
from tests.guests.debuggers import PATIENCE, gdb, gdb_command, symbols

SOURCE = Path(__file__).with_name("debugged.S")
pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(900)]

STEPS = 40
WALK = f"""
gdb.execute("hbreak stored")
gdb.execute("continue")
answer["stored"] = number("$pc")
vl = number("$vg") * 64
answer["vl"] = vl
gdb.execute("unset tdesc filename")
answer["sizes"] = [gdb.parse_and_eval("$z0").type.sizeof * 8]
answer["z"] = [bytes(lanes(f"$z{{n}}.b.u")).hex() for n in range(32)]
address = number("(unsigned long)&vectors")
answer["memory"] = [memory(address + n * vl // 8, vl // 8) for n in range(32)]
gdb.execute("delete")
gdb.execute("hbreak loop")
gdb.execute("continue")
gdb.execute("delete")
gdb.execute("set scheduler-locking step")
answer["steps"] = []
for _ in range({STEPS}):
    gdb.execute("stepi", to_string=True)
    answer["steps"].append([number("$pc"), number("$x1")])
gdb.execute("set scheduler-locking off")
answer["variable"] = number("*(unsigned long *)&variable")
gdb.execute("watch *(unsigned long *)&variable")
gdb.execute("continue")
answer["watched"] = number("*(unsigned long *)&variable")
gdb.execute("delete")
answer["threads"] = len(gdb.selected_inferior().threads())
gdb.execute("thread 2")
answer["second"] = number("$pc")
gdb.execute("thread 1")
for name in ("shorter", "shortest"):
    gdb.execute(f"hbreak {{name}}")
    gdb.execute("continue")
    gdb.execute("delete")
    answer[name] = number("$vg") * 64
    gdb.execute("unset tdesc filename")
    answer["sizes"].append(gdb.parse_and_eval("$z0").type.sizeof * 8)
answer["TCR_EL1"] = number("$TCR_EL1")
gdb.execute("set $z1.d.u[0] = 42")
gdb.execute("monitor sve")
gdb.execute("continue")
"""


@pytest.fixture(scope="module")
def guest(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("debugged") / "debugged.elf"
    options = ["-nostdlib", "-static", "-no-pie", "-g", "-Wl,--build-id=none",
               "-Wl,-Ttext=0x80080000"]  # fmt: skip
    subprocess.run([str(cross_gcc), *options, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "gdb"


@pytest.fixture
def run(pyvmm_cmd: list[str], guest: Path, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*pyvmm_cmd, "run", "-c", "2", "--name", "debugged", f"--gdb={place}", "--gdb-wait",
               str(guest)]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield process
        finally:
            process.terminate()


def test_gdb_breaks_steps_watches_and_writes_lanes(
    run: subprocess.Popen[bytes], guest: Path, place: Path, tmp_path: Path
) -> None:
    at = symbols(guest)

    found = gdb(str(place), WALK, tmp_path, guest)

    assert found["stored"] == at["stored"]
    assert found["vl"] == 2048
    assert found["z"] == found["memory"]  # what gdb reads is what the guest stored
    loop = [at["loop"] + 4 * n for n in range(4)]
    expected = [[loop[n % 4], (n + 3) // 4] for n in range(1, STEPS + 1)]
    assert found["steps"] == expected
    assert (found["variable"], found["watched"]) == (STEPS // 4, STEPS // 4 + 1)
    assert found["threads"] == 2
    assert at["second"] <= found["second"] < at["second"] + 8
    assert (found["shorter"], found["shortest"]) == (512, 128)
    assert found["sizes"] == [2048, 512, 128]
    assert "uses 128 bits" in found["printed"]
    assert run.wait(PATIENCE) == 42  # the lane that gdb wrote


def test_guest_goes_on_when_gdb_is_killed_and_takes_another(
    run: subprocess.Popen[bytes], guest: Path, place: Path, tmp_path: Path, pyvmm_cmd: list[str]
) -> None:
    ready = tmp_path / "ready"
    command, environment = gdb_command(
        str(guest), "-batch", "-ex", f"target remote {place}", "-ex", "hbreak shorter",
        "-ex", "break second", "-ex", "continue", "-ex", f"shell touch {ready}",
        "-ex", "shell sleep 999",
    )  # fmt: skip
    with subprocess.Popen(command, env=environment, start_new_session=True) as debugger:
        deadline = time.monotonic() + 2 * PATIENCE
        while not ready.exists():
            assert time.monotonic() < deadline
            assert debugger.poll() is None
            time.sleep(0.1)
        os.killpg(debugger.pid, signal.SIGKILL)

    assert run.wait(PATIENCE) == 0xE8  # lane 0 of Z1 is 1000, as without a debugger


def test_lldb_breaks_reads_vectors_and_steps(
    run: subprocess.Popen[bytes], guest: Path, place: Path
) -> None:
    at = symbols(guest)
    lines = (
        f"settings set plugin.process.gdb-remote.packet-timeout {PATIENCE}",
        f"target create {guest}", f"process connect unix-connect://{place}",
        "breakpoint set -n stored -K 0", "continue", "register read pc vg z1",
        "thread step-inst", "register read pc", "breakpoint delete -f",
        f"breakpoint set -H -a {at['shortest']:#x}", "continue", "register read pc vg",
        "register read z1", "breakpoint delete -f", "process detach",
    )  # fmt: skip
    tool = tools.lldb(Progress())
    words = [word for line in lines for word in ("-o", line)]
    done = subprocess.run(
        [*tool.command, "--no-lldbinit", "-b", *words],
        env={**os.environ, **tool.environment},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )

    shown = done.stdout
    for name in ("stored", "shortest"):
        assert f"pc = {at[name]:#018x}" in shown, shown + done.stderr
    assert f"pc = {at['stored'] + 4:#018x}" in shown
    assert "vg = 0x0000000000000020" in shown  # 2048 bits
    assert "vg = 0x0000000000000002" in shown
    lanes = struct.pack("<64I", *(1000 + 3 * n for n in range(64)))
    for length in (256, 16):
        text = " ".join(f"0x{byte:02x}" for byte in lanes[:length])
        assert f"z1 = {{{text}}}" in shown, shown
    assert run.wait(PATIENCE) == 0xE8
