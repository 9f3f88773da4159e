"""Debian's gdb, connected to guests by ``pyvmm run --gdb`` and ``pyvmm gdb``."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host.progress import Progress
from tests import linux, tools
from tests.guests.debuggers import PATIENCE, gdb, gdb_command, symbols

SOURCE = Path(__file__).with_name("debugged.S")
pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(900)]
on_every_host = pytest.mark.parametrize(
    "host", ["6.1", "6.12", "7.2"], indirect=True, scope="module"
)

STEPS = 40
MANY, ELEMENTS = 1000, 1200
BEFORE, LOOP, FMLA = 5, 7, 7  # of sve_daxpy: instructions before its loop, in it, and before FMLA
# Steps through sve_daxpy at 512 bits: PC after each, and Z1 and Z2 after each FMLA.
STEP_MATH = f"""
gdb.execute("hbreak sve_daxpy")
gdb.execute("continue")
gdb.execute("delete")
gdb.execute("set $ZCR_EL1 = 3")
gdb.execute("unset tdesc filename")
start = number("$pc")
answer["left"], answer["expected"] = [
    memory(number(f"(unsigned long)&{{name}}"), 8 * {ELEMENTS}) for name in ("left", "expected")
]
answer["steps"], answer["lanes"] = [], []
for _ in range({MANY}):
    gdb.execute("stepi", to_string=True)
    answer["steps"].append(number("$pc") - start)
    if answer["steps"][-1] == 4 * ({FMLA} + 1):
        answer["lanes"].append([lanes("$z1.d.u"), lanes("$z2.d.u")])
"""
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


PAGES = """
gdb.execute("hbreak mapped")
gdb.execute("continue")
answer["x3"] = number("$x3")
answer["banner"] = gdb.execute("x/s 0x40058123", to_string=True)
gdb.execute("delete")
gdb.execute("break mapped")  # through the tables
gdb.execute("continue")
answer["pc"] = number("$pc")
gdb.execute("set {char}0x40058123 = 'W'")
answer["physical"] = gdb.execute("x/s &banner", to_string=True)
gdb.execute("delete")
gdb.execute("monitor quit")
"""


@pytest.fixture(scope="module")
def guest(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(cross_gcc, SOURCE, tmp_path_factory.mktemp("debugged"))


def build(gcc: Path, source: Path, directory: Path) -> Path:
    path = directory / source.with_suffix(".elf").name
    options = ["-nostdlib", "-static", "-no-pie", "-g", "-Wl,--build-id=none",
               "-Wl,-Ttext=0x80080000"]  # fmt: skip
    subprocess.run([str(gcc), *options, "-o", str(path), str(source)], check=True)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "gdb"


@pytest.fixture(scope="module")
def sve_math(built: Path) -> Path:
    return built / "sve-math"


@pytest.fixture
def run(
    host: list[str], pyvmm_cmd: list[str], guest: Path, place: Path
) -> Iterator[subprocess.Popen[bytes]]:
    options = [*host, "-c", "2", "--name", "debugged"]
    with running([*pyvmm_cmd, "run", *options], place, guest) as process:
        yield process


@contextlib.contextmanager
def running(command: list[str], place: Path, guest: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a guest that waits for a debugger at a place."""
    where = [f"--gdb={place}", "--gdb-wait", str(guest)]
    with subprocess.Popen([*command, *where], stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield process
        finally:
            process.terminate()


@on_every_host
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


@pytest.mark.timeout(2400)
def test_thousand_steps_of_sve_math_give_what_the_guest_computes(
    pyvmm_cmd: list[str], sve_math: Path, place: Path, tmp_path: Path
) -> None:
    command = [*pyvmm_cmd, "run", "-c", "1", "--sve-max-vl=512", "-p", "kernel=daxpy"]
    with running(command, place, sve_math) as guest:
        found = gdb(str(place), STEP_MATH, tmp_path, sve_math, timeout_s=1800)
        assert guest.wait(PATIENCE) == 0  # the guest's own check, after the steps

    path = [n if n < BEFORE else BEFORE + (n - BEFORE) % LOOP for n in range(1, MANY + 1)]
    assert found["steps"] == [4 * n for n in path]
    # The guest has computed `expected` without vectors, one element after the other.
    left, expected = (
        struct.unpack(f"<{ELEMENTS}Q", bytes.fromhex(found[name])) for name in ("left", "expected")
    )
    assert len(found["lanes"]) == path.count(FMLA + 1) > 100
    for n, (z1, z2) in enumerate(found["lanes"]):
        assert tuple(z1) == left[8 * n : 8 * n + 8]
        assert tuple(z2) == expected[8 * n : 8 * n + 8]


def test_gdb_reads_a_text_by_tables_with_pages_of_64_kib(
    pyvmm_cmd: list[str], cross_gcc: Path, place: Path, tmp_path: Path
) -> None:
    pages = build(cross_gcc, SOURCE.with_name("pages64.S"), tmp_path)
    with running([*pyvmm_cmd, "run", "-c", "1"], place, pages) as guest:
        found = gdb(str(place), PAGES, tmp_path, pages)
        guest.wait(PATIENCE)

    assert found["x3"] == ord("P")  # as the guest reads it
    assert found["banner"].split("\t")[1] == '"Pages of 64 KiB"\n'
    assert found["pc"] == symbols(pages)["mapped"]
    assert '"Wages of 64 KiB"' in found["physical"]


@on_every_host
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


CLIENTS, OPEN = 1000, 100


@pytest.mark.timeout(2400)
def test_thousand_hostile_clients_leave_the_guest_running(
    pyvmm_cmd: list[str], built: Path, place: Path, tmp_path: Path
) -> None:
    rng = random.Random(19)
    packets = (b"$vCont;c#a8", b"$g#67", b"\x03", b"$m0,ffffffffffffffff#00", b"$" + b"m" * 70_000)
    command = [*pyvmm_cmd, "run", "-c", "1", f"--gdb={place}", str(built / "echo")]
    with linux.Session(command) as guest, contextlib.ExitStack() as opened:
        guest.type(b"before\n")
        guest.wait_for(b"before")
        kept: list[socket.socket] = []
        for _ in range(CLIENTS):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(place))  # waits for its turn
            client.settimeout(0.01)
            with contextlib.suppress(OSError):  # it has been disconnected, or is not read
                client.sendall(rng.choice(packets) + b"$" + rng.randbytes(rng.randrange(1, 200)))
            kept.append(client)  # acknowledges nothing, and reads nothing
            if len(kept) > OPEN:
                kept.pop(rng.randrange(OPEN)).close()
        opened.close()

        guest.type(b"after\n")
        guest.wait_for(b"after", PATIENCE)
        found = gdb(str(place), "answer['pc'] = number('$pc')", tmp_path, built / "echo")
        assert found["pc"]
        guest.type(b"\x04")
        assert guest.end(PATIENCE) == 0
        assert b"Traceback" not in guest.errors


@on_every_host
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
