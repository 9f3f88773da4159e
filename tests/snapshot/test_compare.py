"""The differences between two snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState
from pyvmm.layout import MIB, PVTIME, RAM_BASE, VMGENID, Region
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.compare import Change, Comparison, MemoryChange, compare
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.snapshot import Snapshot
from pyvmm.snapshot.state import RENEWED, GicBlock, State
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests.snapshot import sample
from tests.snapshot.files import noise, save_machine

ESR = regs.lookup("ESR_EL1", sysregs.ENCODINGS)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, 16 * MIB) as memory:
        memory.write(RAM_BASE + BLOCK - PAGE, noise(3 * BLOCK))
        yield memory


def compared(tmp_path: Path, a: State, b: State) -> Comparison:
    save_machine(tmp_path / "a", a)
    save_machine(tmp_path / "b", b)
    with Snapshot(tmp_path / "a") as left, Snapshot(tmp_path / "b") as right:
        return compare(left, right)


def vcpu_0(state: State, **fields: Any) -> State:
    return state.replace(vcpus=(state.vcpus[0].replace(**fields), *state.vcpus[1:]))


def registers(state: State, **values: int) -> State:
    ids = {regs.lookup(name, sysregs.ENCODINGS): value for name, value in values.items()}
    return vcpu_0(state, registers={**state.vcpus[0].registers, **ids})


def only(found: Comparison) -> Change:
    (change,) = found.changes
    return change


def test_compare_finds_nothing_in_equal_snapshots(tmp_path: Path) -> None:
    found = compared(tmp_path, sample.state(), sample.state())

    assert found == Comparison((), ())
    assert not found.differ


def test_compare_reports_the_fields_of_a_register(tmp_path: Path) -> None:
    a, b = (registers(sample.state(), ESR_EL1=value) for value in (0x5600_0007, 0x9600_0007))

    change = only(compared(tmp_path, a, b))

    assert (change.where, change.name) == ("vCPU 0", "ESR_EL1")
    assert (change.a, change.b) == ("0x0000000056000007", "0x0000000096000007")
    assert ("EC", "SVC64", "DABT_CUR") in change.details


def test_compare_reports_the_lanes_of_a_vector(tmp_path: Path) -> None:
    old = sample.state().vcpus[0].registers[regs.Z(7)]

    change = only(compared(tmp_path, sample.state(), registers(sample.state(), Z7=old ^ 1 << 200)))

    assert change.name == "Z7"
    assert [detail.name for detail in change.details] == ["d[3]"]


def test_compare_reports_the_byte_lanes_of_a_predicate(tmp_path: Path) -> None:
    old = sample.state().vcpus[0].registers[regs.P(4)]

    change = only(compared(tmp_path, sample.state(), registers(sample.state(), P4=old ^ 0x8002)))

    assert change.name == "P4"
    assert [detail.name for detail in change.details] == ["b[1]", "b[15]"]


def test_compare_reports_a_register_that_one_side_lacks(tmp_path: Path) -> None:
    change = only(compared(tmp_path, sample.state(), registers(sample.state(), ESR_EL1=0)))

    assert (change.name, change.a, change.b) == ("ESR_EL1", None, "0x0000000000000000")
    assert not change.expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TIMER_CNT", 5, True),
        ("TIMER_CTL", 5, True),  # ISTATUS alone
        ("TIMER_CTL", 3, False),
        ("TIMER_CVAL", 3, False),
        ("X3", 3, False),
    ],
)
def test_compare_expects_counters_and_recomputed_bits_to_differ(
    tmp_path: Path, name: str, value: int, expected: bool
) -> None:
    found = compared(tmp_path, sample.state(), registers(sample.state(), **{name: value}))

    assert bool(only(found).expected) == expected
    assert found.differ != expected


MACHINES: list[tuple[str, Callable[[State], State], str, str]] = [
    ("mp_state", lambda s: vcpu_0(s, mp_state=MpState.SUSPENDED), "vCPU 0", "mp_state"),
    ("pvtime", lambda s: vcpu_0(s, pvtime=None), "vCPU 0", "pvtime"),
    (
        "events",
        lambda s: vcpu_0(s, events=s.vcpus[0].events.replace(serror_pending=True)),
        "vCPU 0",
        "events.serror_pending",
    ),
    (
        "vcpus",
        lambda s: s.replace(vcpus=s.vcpus[:1], gic=s.gic.replace(blocks=s.gic.blocks[:2])
        ),
        "vCPU 1",
        "vCPU",
    ),
    (
        "device",
        lambda s: s.replace(devices={**s.devices, "rtc": {"offset": 1}}),
        "rtc",
        "offset",
    ),
    ("ipa", lambda s: s.replace(ipa_bits=40), "machine", "ipa_bits"),
    (
        "params",
        lambda s: s.replace(config=s.config.replace(params="x")),
        "machine",
        "config.params",
    ),
    (
        "gic",
        lambda s: s.replace(
            gic=s.gic.replace(
                blocks=(GicBlock(part="dist", vcpu=None, registers={0x0: 0x13, 0x8: 0x43B}),
                        *s.gic.blocks[1:]),
            ),
        ),
        "GIC dist",
        "GICD_CTLR",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "where", "name"), [row[1:] for row in MACHINES], ids=[row[0] for row in MACHINES]
)
def test_compare_reports_every_other_part(
    tmp_path: Path, change: Callable[[State], State], where: str, name: str
) -> None:
    found = compared(tmp_path, sample.state(), change(sample.state()))

    assert (where, name) in [(c.where, c.name) for c in found.changes if not c.expected]
    assert found.differ


def test_compare_expects_time_and_name_to_differ(tmp_path: Path) -> None:
    state = sample.state()
    later = state.replace(
        taken=state.taken.replace(time="2026-11-27T00:00:00Z"),
        clock=state.clock.replace(virtual=5),
        config=state.config.replace(name="other"),
    )

    found = compared(tmp_path, state, later)

    assert len(found.changes) == 3
    assert not found.differ


def saved(path: Path, memory: GuestMemory) -> SnapshotFile:
    save_machine(path, sample.state(), memory)
    return SnapshotFile.open(path)


def test_compare_reports_changed_pages_as_ranges(tmp_path: Path, memory: GuestMemory) -> None:
    save_machine(tmp_path / "a", sample.state(), memory)
    memory.write(RAM_BASE + 2 * BLOCK + 5, b"?" * PAGE)  # two pages
    memory.write(RAM_BASE + 16 * MIB - 1, b"?")  # one that was zero
    memory.zero(RAM_BASE + BLOCK - PAGE, PAGE)
    save_machine(tmp_path / "b", sample.state(), memory)

    with Snapshot(tmp_path / "a") as left, Snapshot(tmp_path / "b") as right:
        found = compare(left, right)

    assert found.memory == (
        MemoryChange(RAM_BASE + BLOCK - PAGE, RAM_BASE + BLOCK),
        MemoryChange(RAM_BASE + 2 * BLOCK, RAM_BASE + 2 * BLOCK + 2 * PAGE),
        MemoryChange(RAM_BASE + 16 * MIB - PAGE, RAM_BASE + 16 * MIB),
    )
    assert found.differ


def test_compare_does_not_read_equal_blocks(
    tmp_path: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_machine(tmp_path / "a", sample.state(), memory)
    memory.write(RAM_BASE + 2 * BLOCK, b"?")
    save_machine(tmp_path / "b", sample.state(), memory)
    read: list[int] = []
    real = SnapshotFile.read_block

    def note(self: SnapshotFile, number: int) -> bytes:
        read.append(number)
        return real(self, number)

    monkeypatch.setattr(SnapshotFile, "read_block", note)
    with Snapshot(tmp_path / "a") as left, Snapshot(tmp_path / "b") as right:
        compare(left, right)

        assert len(read) < len(left.file.blocks) + len(right.file.blocks) - 1


def test_compare_of_parent_and_child_reports_the_changed_page(
    tmp_path: Path, memory: GuestMemory
) -> None:
    save_machine(tmp_path / "a", sample.state(), memory)
    memory.write(RAM_BASE + 2 * BLOCK, b"?")
    dirty = [(RAM_BASE + 2 * BLOCK, RAM_BASE + 2 * BLOCK + PAGE)]
    with SnapshotFile.open(tmp_path / "a") as parent:
        write_snapshot(
            tmp_path / "b", sample.state().document(), [MemoryToSave(memory, dirty)], parent=parent
        )

    with Snapshot(tmp_path / "a") as left, Snapshot(tmp_path / "b") as right:
        assert compare(left, right).memory == (MemoryChange(*dirty[0]),)


@pytest.mark.parametrize("region", [PVTIME, VMGENID], ids=lambda region: region.name)
def test_compare_expects_renewed_memory_to_differ(tmp_path: Path, region: Region) -> None:
    state = sample.state()
    state = state.replace(memory=(*state.memory, sample.GENERATION_ID))
    with GuestMemory(region.base, region.size) as memory:
        save_machine(tmp_path / "a", state, memory)
        memory.write(region.base + 8, b"\1")
        save_machine(tmp_path / "b", state, memory)

    with Snapshot(tmp_path / "a") as left, Snapshot(tmp_path / "b") as right:
        found = compare(left, right)

    (change,) = found.memory
    assert change.expected == RENEWED[region.name]
    assert not found.differ
