"""``pyvmm snapshot``: output and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import main
from pyvmm.commands.snapshot.show import hex_lines
from pyvmm.config import Disk
from pyvmm.kvm import regs
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import save_machine

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        memory.write(RAM_BASE + 0x80000, b"Hello, guest")
        yield memory


@pytest.fixture
def path(tmp_path: Path, memory: GuestMemory) -> Path:
    save_machine(tmp_path / "a.snap", sample.state(), memory)
    return tmp_path / "a.snap"


def run(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    code = main(["snapshot", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_show_prints_every_part(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "show", path)

    assert code == 0
    for part in (
        "taken      2026-11-26T21:40:00Z by pyvmm 0.1.0",
        "on         emulated: QEMU 7.2.22 (TCG), -cpu max,sve2048=on, Linux 6.1.0-50-arm64",
        "machine    sample: 2 vCPUs, gicv3, SVE 128,256 bits",
        "0x0080000000-0x0081000000  ram     16 MiB, of which 1 pages are not zero, in 1 range",
        "uart0      registers IER=1",
        "GICR_ISENABLER0    0x0800ffff",
        "vCPU 0: RUNNABLE",
        "vCPU 1: STOPPED",
        "PSTATE            0x00000000000003c5  EL1h nzcv DAIF",
        "Z3   0404040404040404 in each of 4 doublewords",
        "P2   55555557",
    ):
        assert part in out


def test_show_one_vcpu_and_a_part(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "show", path, "--vcpu", "1", "--part", "vectors")

    assert code == 0
    assert out.startswith("vCPU 1: STOPPED\nvectors: VL 256 of 128,256 bits")
    assert "PSTATE" not in out


def test_show_registers_by_pattern(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "show", path, "--regs", "z1?,pc,*_el1", "--vcpu", "0")

    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "vCPU", "PC", *(f"Z{n}" for n in range(10, 20)), "MPIDR_EL1", "ZCR_EL1",
    ]  # fmt: skip


def test_show_json_has_state_and_names(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "show", path, "--json", "--regs", "PC,Z3")
    document = json.loads(out)

    assert code == 0
    assert document["schema"] == 1
    assert document["state"]["vcpus"][0]["registers"] == {
        "PC": "0x0000000080080000", "Z3": "0x" + "04" * 32,
    }  # fmt: skip
    assert document["state"]["vcpus"][1]["features"] == ["POWER_OFF", "PSCI_0_2", "SVE"]
    assert document["state"]["gic"]["parts"][1]["registers"] == {"GICR_ISENABLER0": "0x0800ffff"}
    assert document["state"]["taken"]["kernel"] == "6.1.0-50-arm64"
    assert document["stored"] == [["0x80080000", "0x80081000"]]
    assert len(document["file"]["identity"]) == 64


def test_show_memory_as_hexdump_does(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "show", path, "--memory", "0x80080000,16")

    assert code == 0
    assert out == (
        "000080080000  48 65 6c 6c 6f 2c 20 67  75 65 73 74 00 00 00 00  |Hello, guest....|\n"
    )


def test_show_memory_as_json(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "show", path, "--memory", "0x80080007,5", "--json")

    assert code == 0
    assert json.loads(out) == {"schema": 1, "address": "0x80080007", "bytes": b"guest".hex()}


def test_repeated_memory_lines_are_one_star() -> None:
    assert list(hex_lines(0, bytes(64) + b"\1")) == [
        f"000000000000  {'00 ' * 7}00  {'00 ' * 7}00  |{'.' * 16}|",
        "*",
        f"000000000040  {'01':48}  |.|",
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--vcpu", "2"], "has vCPUs 0 to 1"),
        (["--regs", "NOPE*"], "no register of"),
        (["--memory", "0x80000000"], "not ADDR,LEN"),
        (["--memory", "0x80000000,0"], "1 byte to 64 MiB"),
        (["--memory", "0x80000000,1G"], "1 byte to 64 MiB"),
        (["--memory", "0x7ffff000,8K"], "are outside its memory"),
    ],
)
def test_show_refuses_missing_vcpus_registers_and_memory(
    path: Path, capsys: Capture, words: list[str], reason: str
) -> None:
    code, out, err = run(capsys, "show", path, *words)

    assert (code, out) == (2, "")
    assert reason in err


def test_show_of_a_damaged_file_prints_one_error(path: Path, capsys: Capture) -> None:
    data = bytearray(path.read_bytes())
    data[PAGE + 100] ^= 1
    path.write_bytes(data)

    code, out, err = run(capsys, "show", path)

    assert (code, out) == (2, "")
    assert "a.snap: its state is damaged: the SHA-256 differs" in err
    assert err.count("\n") == 2  # and a hint


def test_control_characters_of_a_snapshot_are_escaped(
    path: Path, memory: GuestMemory, capsys: Capture
) -> None:
    b = other(path, memory, devices={"x\x1b[2J": {"\ud800": "\x07"}})

    assert "\\u001b[2J" in run(capsys, "show", b)[1]
    out = run(capsys, "diff", path, b)[1]
    assert "\\ud800" in out and "\\u0007" in out
    assert out.replace("\n", "").isprintable()


def other(path: Path, memory: GuestMemory, **changes: Any) -> Path:
    state = sample.state().replace(**changes)
    save_machine(path.with_name("b.snap"), state, memory)
    return path.with_name("b.snap")


def test_diff_of_equal_snapshots_exits_with_0(path: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "diff", path, path)

    assert (code, out) == (0, f"{path} and {path} are the same\n")


def test_diff_exits_with_1_and_shows_differences(
    path: Path, memory: GuestMemory, capsys: Capture
) -> None:
    memory.write(RAM_BASE + 0x80000, b"J")
    b = other(path, memory, devices={**sample.state().devices, "rtc": {"offset": 1}})

    code, out, _ = run(capsys, "diff", path, b)

    assert code == 1
    assert "rtc\n" in out
    assert "  offset            0 -> 1\n" in out
    assert "memory: 1 page in 1 range\n  0x80080000-0x80081000  1 page\n" in out


def test_diff_and_show_name_addresses_with_symbols(
    path: Path, memory: GuestMemory, tmp_path: Path, capsys: Capture
) -> None:
    state, b, symbols = sample.state(), tmp_path / "b.snap", tmp_path / "System.map"
    state.vcpus[0].registers[regs.PC] += 0x10
    save_machine(b, state, memory)
    symbols.write_text("0000000080080000 T start\n")

    assert "start -> start+0x10" in run(capsys, "diff", path, b, "--symbols", symbols)[1]
    assert "vCPU 0: PC is in start+0x10" in run(capsys, "show", b, "--symbols", symbols)[1]
    calls = run(capsys, "show", b, "--backtrace", "--symbols", symbols)[1]
    assert "0x80080010  start+0x10" in calls


def test_expected_diff_exits_with_0_unless_strict(
    path: Path, memory: GuestMemory, capsys: Capture
) -> None:
    taken = sample.state().taken.replace(time="2027-01-01T00:00:00Z")
    b = other(path, memory, taken=taken)

    code, out, _ = run(capsys, "diff", path, b)
    assert (code, out) == (0, "expected\n  taken.time: place and time of the save\n")
    assert run(capsys, "diff", path, b, "--strict")[0] == 1


def test_diff_prints_json(path: Path, memory: GuestMemory, capsys: Capture) -> None:
    memory.write(RAM_BASE, b"!")
    b = other(path, memory, ipa_bits=40)

    code, out, _ = run(capsys, "diff", path, b, "--json")
    document = json.loads(out)

    assert code == 1
    assert document["differ"] is True
    assert document["changes"] == [
        {"where": "machine", "name": "ipa_bits", "a": "32", "b": "40", "details": [],
         "expected": None},
    ]  # fmt: skip
    assert document["memory"] == [{"start": "0x80000000", "end": "0x80001000", "expected": None}]


def test_import_of_an_export_restores_the_file(path: Path, tmp_path: Path, capsys: Capture) -> None:
    packed, back = tmp_path / "a.zst", tmp_path / "back.snap"

    assert run(capsys, "export", path, packed, "--level", "9")[0] == 0
    code, out, err = run(capsys, "import", packed, back)

    assert (code, out) == (0, "")
    assert "back.snap: snapshot " in err
    assert back.read_bytes() == path.read_bytes()
    assert packed.stat().st_size < path.stat().st_size


def test_import_names_a_source_that_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "import", "/proc/self/mem", tmp_path / "back.snap")

    assert (code, err) == (2, "pyvmm: /proc/self/mem: cannot be read: Input/output error\n")


def test_import_of_anything_else_is_refused(path: Path, tmp_path: Path, capsys: Capture) -> None:
    code, _, err = run(capsys, "import", path, tmp_path / "back.snap")

    assert code == 2
    assert "a.snap: damaged, or not packed" in err
    assert not (tmp_path / "back.snap").exists()


def test_flatten_writes_one_file(path: Path, memory: GuestMemory, capsys: Capture) -> None:
    child, flat = path.with_name("child.snap"), path.with_name("flat.snap")
    memory.write(RAM_BASE, b"!")
    with SnapshotFile.open(path) as parent:
        dirty = MemoryToSave(memory, [(RAM_BASE, RAM_BASE + PAGE)])
        write_snapshot(child, sample.state().document(), [dirty], parent=parent)

    assert "  parent     " in run(capsys, "show", child)[1]
    assert run(capsys, "flatten", child, flat)[0] == 0
    path.unlink()

    assert run(capsys, "diff", flat, flat)[0] == 0
    with SnapshotFile.open(flat) as snapshot:
        assert snapshot.read(RAM_BASE, 1) == b"!"
        assert snapshot.read(RAM_BASE + 0x80000, 5) == b"Hello"
    code, _, err = run(capsys, "show", child)
    assert code == 2
    assert "its parent: " in err


def test_show_lists_the_files_that_a_restore_opens(tmp_path: Path, capsys: Capture) -> None:
    state = sample.state()
    disk = tmp_path / "disk.img"
    config = state.config.replace(devices=(Disk(path=disk, read_only=True),))
    save_machine(tmp_path / "a.snap", state.replace(config=config))

    text = run(capsys, "show", tmp_path / "a.snap")[1]
    found = json.loads(run(capsys, "show", "--json", tmp_path / "a.snap")[1])

    assert f"  opens      disk {disk}, read-only\n" in text
    assert "  saved      without a mark of yours\n" in text
    assert found["outside"] == [{"what": "disk", "path": str(disk), "mode": "read-only"}]
    assert found["file"]["own"] is False


def test_commands_open_a_parent_elsewhere_only_if_trusted(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    (tmp_path / "in").mkdir()
    child = tmp_path / "in/child.snap"
    with SnapshotFile.open(path) as parent:
        write_snapshot(child, sample.state().document(), [], parent=parent)

    commands: tuple[list[str | Path], ...] = (
        ["show", child], ["diff", child, path], ["flatten", child, tmp_path / "f"],
        ["export", child, tmp_path / "e"],
    )  # fmt: skip
    for words in commands:
        code, _, err = run(capsys, *words)
        assert (code, f"its parent is elsewhere: {tmp_path}" in err) == (2, True)
        assert "--trust" in err
        assert run(capsys, *words, "--trust")[0] in (0, 1)


@pytest.mark.parametrize("words", [["flatten", "a.snap", "-"], ["import", "a.snap", "-"]])
def test_snapshot_is_not_written_to_standard_output(words: list[str], capsys: Capture) -> None:
    code, _, err = run(capsys, *words)

    assert code == 2
    assert "-: a snapshot cannot be written to standard output" in err
    assert not Path("-").exists()
