"""A vCPU's registers as pyvmm shows them, compared with gdb lane by lane.

gdb reads them by the gdbstub of the QEMU that is the emulated host, while a guest runs on its CPU.
So its values come neither from KVM nor from pyvmm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from qemu.qmp import QMPClient

from pyvmm.arm64.lanes import Predicate, Vector
from pyvmm.host import HostSettings, is_local
from pyvmm.host.progress import Progress
from tests import runtime, tools

SOURCE = Path(__file__).with_name("lanes.S")
pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(600)]

KINDS: Final = {"u": "unsigned", "s": "signed", "f": "float"}
LANES: Final = {"b": "us", "h": "usf", "s": "usf", "d": "usf", "q": "u"}

# For gdb's own Python: wait until a CPU runs the guest at that address.
ASK: Final = """
import gdb, json, time
asked = json.loads(gdb.parse_and_eval("$asked").string())

def plain(value):
    if value.type.sizeof > 8:
        return int(value.format_string(format="x"), 16)
    return float(value) if value.type.strip_typedefs().code == gdb.TYPE_CODE_FLT else int(value)

def array(value):
    low, high = value.type.range()
    return [plain(value[n]) for n in range(low, high + 1)]

def lanes(name):
    value = gdb.parse_and_eval(name)
    return {f"{s}.{k}": array(value[s][k]) for s, kinds in asked["lanes"].items() for k in kinds}

def found():
    gdb.execute(f"target remote {asked['socket']}")
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        if int(gdb.parse_and_eval("(unsigned long)$pc")) == asked["at"]:
            return True
    gdb.execute("detach")
    time.sleep(0.05)
    return False

assert any(found() for _ in range(200)), "no CPU is in the guest's loop"
answer = {f"Z{n}": lanes(f"$z{n}") for n in range(32)}
answer |= {f"P{n}": array(gdb.parse_and_eval(f"$p{n}"))[:32] for n in range(16)}
answer |= {"FFR": array(gdb.parse_and_eval("$ffr"))[:32]}
words = {f"X{n}": f"$x{n}" for n in range(31)} | {"FPCR": "$fpcr", "FPSR": "$fpsr"}
answer |= {name: int(gdb.parse_and_eval(word)) & (1 << 64) - 1 for name, word in words.items()}
with open(asked["answer"], "w") as file:
    json.dump(answer, file)
gdb.execute("detach")
"""


@pytest.fixture(scope="module")
def guest(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lanes") / "lanes.elf"
    options = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-Ttext=0x80080000"]
    subprocess.run([str(cross_gcc), *options, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture(scope="module")
def stub(pyvmm_cmd: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the socket of an emulated host's gdbstub."""
    if is_local(HostSettings()):
        pytest.skip("guests run on this machine's own CPU")
    with runtime.own_runtime_dir("gdb"):
        subprocess.run([*pyvmm_cmd, "host", "start"], check=True)
        (qmp,) = Path(os.environ[runtime.VARIABLE]).glob("pyvmm/*/qmp")
        asyncio.run(_serve_gdb(qmp, qmp.with_name("gdb")))
        yield qmp.with_name("gdb")


async def _serve_gdb(qmp: Path, socket: Path) -> None:
    client = QMPClient("tests")
    await client.connect(str(qmp))
    line = f"gdbserver unix:{socket},server=on,wait=off"
    said = await client.execute("human-monitor-command", {"command-line": line})
    await client.disconnect()
    assert "Waiting for gdb" in str(said)


def address(elf: Path, symbol: str) -> int:
    with elf.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        (found,) = table.get_symbol_by_name(symbol) or []
        return int(found["st_value"])


def gdb_finds(stub: Path, at: int, where: Path) -> dict[str, Any]:
    """Return gdb's values of the CPU that runs at that address."""
    answer, script = where / "answer.json", where / "ask.py"
    script.write_text(ASK)
    asked = {"lanes": LANES, "socket": str(stub), "at": at, "answer": str(answer)}
    quoted = json.dumps(asked).replace('"', r"\"")
    tool = tools.gdb(Progress())
    done = subprocess.run(
        [*tool.command, "-nx", "-batch", "-ex", "set architecture aarch64",
         "-ex", f'set $asked = "{quoted}"', "-x", str(script)],
        env={**os.environ, **tool.environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[None]:
    """Run a guest that has loaded its registers, until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as guest:
        try:
            assert guest.stdout is not None
            assert guest.stdout.read(1) == b"!"
            yield
        finally:
            guest.terminate()


def check_vector(ours: Vector, theirs: dict[str, list[float]]) -> int:
    """Check that lanes of every size and kind are equal; return their number."""
    compared = 0
    for size, kind in ((size, kind) for size, kinds in LANES.items() for kind in kinds):
        lanes: tuple[float, ...] = getattr(getattr(ours, size), KINDS[kind])
        pairs = zip(lanes, theirs[f"{size}.{kind}"], strict=False)  # gdb always shows 2048 bits
        assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs), (size, kind)
        compared += len(lanes)
    return compared


def check_predicate(ours: Predicate, theirs: list[int]) -> int:
    """Check that every byte lane is equal; return their number."""
    whole = int.from_bytes(bytes(theirs), "little")
    assert [*ours.b] == [bool(whole >> n & 1) for n in range(len(ours.b))]
    return len(ours.b)


@pytest.mark.parametrize("bits", [128, 512, 2048])
def test_registers_equal_those_that_gdb_reads_from_the_cpu(
    bits: int, stub: Path, guest: Path, pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    run = [*pyvmm_cmd, "run", "-c", "1", "--name", "lanes", f"--sve-max-vl={bits}", str(guest)]
    with running(run):
        shown = subprocess.run(
            [*pyvmm_cmd, "debug", "-d", "-n", "lanes", "--json"], capture_output=True, check=True
        )
        found = gdb_finds(stub, address(guest, "loaded"), tmp_path)
    vcpu = json.loads(shown.stdout)["vms"][0]["vcpus"][0]
    ours = {name: int(value, 16) for name, value in vcpu["registers"].items()}

    assert vcpu["current_vl"] == bits
    lanes = sum(check_vector(Vector(ours[f"Z{n}"], bits), found[f"Z{n}"]) for n in range(32))
    for name in (*(f"P{n}" for n in range(16)), "FFR"):
        lanes += check_predicate(Predicate(ours[name], bits), found[name])
    others = [*(f"X{n}" for n in range(31)), "FPCR", "FPSR"]
    assert {name: ours[name] for name in others} == {name: found[name] for name in others}
    assert lanes == bits // 8 * (32 * (2 + 3 / 2 + 3 / 4 + 3 / 8 + 1 / 16) + 17)
    print(f"\n{bits} bits: {lanes} lanes agree")
