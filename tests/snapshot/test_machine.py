"""Save and restore of machines: nothing is lost, and the guest detects a loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.errors import HostError, UsageError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState
from pyvmm.layout import VMGENID
from pyvmm.snapshot import restorestate
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restorer import ClockPolicy, Reading, Restorer, restore
from pyvmm.snapshot.save import save
from pyvmm.snapshot.state import State, VcpuState
from tests.snapshot import machines

pytestmark = pytest.mark.kvm

SMALL = frozenset({128, 256})  # lengths that the tests' hosts have
ZCR_EL1 = regs.lookup("ZCR_EL1", sysregs.ENCODINGS)
PSTATE_I = 1 << 7  # interrupts are masked.  Source: Arm DDI 0487, SPSR_EL1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the guest while it works."""
    path = tmp_path_factory.mktemp("saved") / "guest.snap"
    with machines.boot(SMALL) as guest:
        guest.run_rounds()
        for _ in range(100):
            save(guest.machine, path)
            if holds_patterns(path):
                break
        else:
            pytest.fail("the guest is never in the middle of a round")
        assert guest.finish() == 0, guest.text  # the saved machine still runs
    return path


def holds_patterns(path: Path) -> bool:
    """Whether the vCPUs that are on are between filling registers and looking at them.

    They take interrupts only there; a pattern that is 0 would not be missed.
    """
    with SnapshotFile.open(path) as file:
        vcpus = State.of(file.document, str(path)).vcpus[:2]
    return all(
        not vcpu.registers[regs.PSTATE] & PSTATE_I and vcpu.registers[regs.FPCR] for vcpu in vcpus
    )


@pytest.mark.parametrize("reading", Reading)
def test_guest_resumes_after_a_restore(saved: Path, reading: Reading) -> None:
    with machines.restored(saved, reading=reading) as guest:
        guest.machine.start()
        guest.run_rounds()
        guest.type("c")
        guest.run_rounds()

        assert guest.rounds().keys() == {0, 1, 2}
        assert guest.finish() == 0, guest.text


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Return a state without the parts that depend on the time of the save."""
    return {**document, "taken": None, "clock": {**document["clock"], "real_ns": 0}}


def contents(file: SnapshotFile) -> list[tuple[int, bytes]]:
    """Return the stored memory, without the VM generation ID: each restore changes it."""
    ranges = [range_ for range_ in file.stored() if range_[0] != VMGENID.base]
    return [(low, file.read(low, high - low)) for low, high in ranges]


def test_save_right_after_a_restore_writes_the_same_state(saved: Path, tmp_path: Path) -> None:
    with machines.restored(saved) as guest:
        save(guest.machine, tmp_path / "again.snap")

    with SnapshotFile.open(saved) as one, SnapshotFile.open(tmp_path / "again.snap") as other:
        assert comparable(other.document) == comparable(one.document)
        assert contents(other) == contents(one)


def test_guest_resumes_after_repeated_restores(saved: Path, tmp_path: Path) -> None:
    path = saved
    for number in range(2):
        with machines.restored(path) as guest:
            guest.machine.start()
            guest.run_rounds(2)
            path = tmp_path / f"{number}.snap"
            save(guest.machine, path)

    with machines.restored(path) as guest:
        guest.machine.start()
        guest.run_rounds(2)
        assert guest.finish() == 0, guest.text


def test_save_of_a_paused_guest_leaves_it_paused(tmp_path: Path) -> None:
    with machines.boot() as guest:
        guest.machine.pause()
        save(guest.machine, tmp_path / "one.snap")
        assert guest.machine.is_paused
        save(guest.machine, tmp_path / "two.snap")

    with (
        SnapshotFile.open(tmp_path / "one.snap") as one,
        SnapshotFile.open(tmp_path / "two.snap") as two,
    ):
        assert comparable(one.document) == comparable(two.document)


def test_save_refuses_a_guest_that_has_ended(tmp_path: Path) -> None:
    with machines.boot() as guest:
        guest.finish()

        with pytest.raises(VmmError, match="the guest has ended"):
            save(guest.machine, tmp_path / "x.snap")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ClockPolicy)
def test_guest_clock_continues_or_catches_up_after_a_restore(
    tmp_path: Path, policy: ClockPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's clock advances by a minute, more than a busy machine delays a guest."""
    path = tmp_path / "clock.snap"
    with machines.boot() as guest:
        guest.run_rounds(1)
        save(guest.machine, path)
    saved_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: saved_ns + 60_000_000_000)

    with machines.restored(path, clock=policy) as guest:
        guest.machine.start()
        guest.run_rounds(2)
        gaps = [int(line.partition("gap_us=")[2].split()[0]) // 1000
                for line in guest.text.splitlines() if ": on" in line]  # fmt: skip

    if policy is ClockPolicy.CATCH_UP:
        assert max(gaps) >= 60_000
    else:
        assert max(gaps) < 60_000


# Negative controls: the guest detects each step that is left out


def every_vcpu(restorer: Restorer, change: Callable[[VcpuState], dict[str, Any]]) -> None:
    vcpus = tuple(v.replace(**change(v)) for v in restorer.state.vcpus)
    restorer.state = restorer.state.replace(vcpus=vcpus)


def without(*reg_ids: int) -> Callable[[Restorer], None]:
    """Leave out registers, which then have the values of a new vCPU."""

    def change(restorer: Restorer) -> None:
        every_vcpu(
            restorer,
            lambda vcpu: {
                "registers": {k: v for k, v in vcpu.registers.items() if k not in reg_ids}
            },
        )

    return change


LATE = 10 << 30  # ticks: at least 10 s


def without_clock(restorer: Restorer) -> None:
    # As if it had been up for minutes: else its next interrupt is due before it loses patience.
    every_vcpu(
        restorer,
        lambda vcpu: {
            "registers": {**vcpu.registers, regs.TIMER_CVAL: vcpu.registers[regs.TIMER_CVAL] + LATE}
        },
    )
    without(regs.TIMER_CNT, regs.PTIMER_CNT)(restorer)
    restorer.start_clock = lambda vcpu: None  # type: ignore[method-assign]  # damage on purpose


def all_on(restorer: Restorer) -> None:
    """Without MP states all vCPUs but the first are off, as new ones are."""
    every_vcpu(restorer, lambda vcpu: {"mp_state": MpState.STOPPED if vcpu.id else vcpu.mp_state})


def other_lengths(restorer: Restorer) -> None:
    every_vcpu(
        restorer,
        lambda vcpu: {
            "vls": frozenset({128, 256, 512}),
            "registers": {k: v for k, v in vcpu.registers.items() if k != regs.SVE_VLS},
        },
    )


LOSSES: dict[str, tuple[Callable[[Restorer], None], str]] = {
    "FFR": (without(regs.FFR()), r"ffr byte 0: expected 0x"),
    "Z7": (without(regs.Z(7)), r"z7 byte 0: expected 0x"),
    "P9": (without(regs.P(9)), r"p9 byte 0: expected 0x"),
    "FPCR": (without(regs.FPCR), "FPCR is 0x0, not"),
    "ZCR_EL1": (without(ZCR_EL1), "RDVL is 16 bytes, not 32"),
    "vector lengths": (other_lengths, "there are 64 bytes of vector length, not 32"),
    "counter": (without_clock, "no timer interrupt for 2 s"),
    "MP state": (all_on, "SGIs arrived"),
}


@pytest.fixture
def no_readback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume a machine that differs from the saved one, which is otherwise an error."""
    monkeypatch.setattr(restorestate, "differences", lambda *_: [])


@pytest.mark.parametrize("what", LOSSES)
@pytest.mark.usefixtures("no_readback")
def test_guest_detects_each_part_that_a_restore_leaves_out(saved: Path, what: str) -> None:
    change, words = LOSSES[what]

    with machines.restored(saved, change) as guest:
        guest.machine.start()
        guest.wait_for(words)


def test_guest_detects_a_gic_that_was_not_restored(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorestate, "restore_gic", lambda *_: [])

    with machines.restored(saved) as guest:
        guest.machine.start()
        guest.wait_for("no timer interrupt for 2 s")


def test_guest_detects_a_lost_page(saved: Path) -> None:
    with SnapshotFile.open(saved) as file:
        state = State.of(file.document, "saved")
        (ram,) = (area for area in state.memory if area.name == "ram")
    with machines.restored(saved) as guest:
        memory = guest.machine.memory
        page = find_pages(memory.read(ram.base, ram.size))
        memory.zero(ram.base + page, 4096)
        guest.machine.start()
        guest.wait_for(r"page [0-9]+ has 0, not [0-9]+")


def find_pages(ram: bytes, *, latest: bool = False) -> int:
    """Return the offset of a page in which the guest has written a round's number."""
    ends = range(4096, len(ram) + 1, 4096)
    numbers = [int.from_bytes(ram[end - 8 : end], "little") for end in ends]
    found = {
        numbers[index]: index * 4096
        for index in range(2, len(numbers))
        if numbers[index] == numbers[index - 1] + 1 == numbers[index - 2] + 2 > 2
    }
    assert found, "the guest's pages are not there"
    return found[max(found) if latest else min(found)]


def test_restore_fails_if_a_register_reads_back_changed(saved: Path) -> None:
    def spoil(restorer: Restorer) -> None:
        # Bits that the register lacks: a kernel may keep or drop them.
        every_vcpu(
            restorer, lambda vcpu: {"registers": {**vcpu.registers, ZCR_EL1: 1 << 40 | 0xFFFF}}
        )

    try:
        with machines.restored(saved, spoil) as guest:
            vcpu = guest.machine.vcpus[0]
            assert vcpu.get_one_reg(ZCR_EL1) == 1 << 40 | 0xFFFF  # this kernel keeps them
    except HostError as error:
        assert "ZCR_EL1 of every vCPU was 0x1000000ffff and reads back as" in error.message


def test_restore_names_a_register_that_the_host_refuses(saved: Path) -> None:
    unknown = regs.ARM64 | regs.U64 | 0x77 << 16

    def add(restorer: Restorer) -> None:
        every_vcpu(restorer, lambda vcpu: {"registers": {**vcpu.registers, unknown: 1}})

    with pytest.raises(HostError, match=r"0x6030000000770000 of every vCPU is missing on this"):
        machines.restored(saved, add)


def test_restore_returns_the_machine_that_was_saved(saved: Path) -> None:
    printed: list[bytes] = []

    with restore(saved, printed.append, name="other", reading=Reading.LAZY) as vm:
        assert vm.config.name == "other"
        assert vm.vcpus[0].vls == SMALL


def damaged(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the file with one changed byte of memory."""
    path = tmp_path / "damaged.snap"
    data = bytearray(saved.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    return path


def test_damage_fails_an_eager_restore_and_ends_a_lazy_guest(saved: Path, tmp_path: Path) -> None:
    path = damaged(saved, tmp_path)

    with pytest.raises(UsageError, match="its memory is damaged"):
        machines.restored(path, reading=Reading.EAGER)
    with (
        machines.restored(path, reading=Reading.LAZY) as guest,
        pytest.raises(UsageError, match="its memory is damaged"),
    ):
        guest.machine.run()
