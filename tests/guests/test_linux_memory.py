"""Balloon and memory hotplug; the judges are Linux's drivers and this machine's memory."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pyvmm.layout import MIB
from tests import linux, selftests
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

KERNELS = ("6.1", "6.12", "7.2")
RAM = 256
NEAR = 0.1 * RAM  # MiB: the largest difference between this machine's use and the guest's
NAME = "memory-linux"
FRESH_S = 0.5
PAGE = 4096
HINT_ORDER = 10
DEADLINE_S = "120"  # seconds: a deadline for a guest to plug or unplug

# The load: it writes, reads and removes files in memory.  The process that makes the directory has
# the lock.
TURN = "until mkdir /t/turn 2>/dev/null; do sleep 0.1; done"
LOAD = (
    f"(while true; do {TURN}; dd if=/dev/urandom of=/t/load bs=1M count=16 2>/dev/null;"
    " md5sum /t/load >/dev/null; rmdir /t/turn; sleep 0.2; done) &"
)


class Guest:
    """A Linux guest with a balloon and room for more memory."""

    def __init__(self, session: Session, command: list[str]) -> None:
        self.session = session
        self._command = command

    def shell(self, command: str) -> str:
        return self.session.shell(command)

    def tell(self, *words: str, code: int = 0) -> str:
        done = subprocess.run([*self._command, *words], capture_output=True, text=True)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def stat(self) -> dict[str, Any]:
        (vm,) = json.loads(self.tell("stat", "--json", "-n", NAME))["vms"]
        assert isinstance(vm, dict)
        return vm

    def fresh_stat(self) -> dict[str, Any]:
        """Return the VM's state after a fresh report of the guest, which may be busy."""
        deadline = time.monotonic() + float(DEADLINE_S)
        while True:
            vm = self.stat()
            said = vm["guest_memory"]
            if said is not None and said["age_s"] < FRESH_S:
                return vm
            assert time.monotonic() < deadline, said

    def used(self) -> tuple[float, float]:
        """Return the MiB that the guest occupies on this machine, and the MiB that it uses."""
        vm = self.fresh_stat()
        has = RAM * MIB + vm["hotplug"]["plugged_bytes"] - vm["balloon"]["actual_bytes"]
        return vm["memory_resident_bytes"] / MIB, (has - vm["guest_memory"]["free_bytes"]) / MIB

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Stop the load in the block, because it frees 16 MiB at once when it starts over."""
        self.shell(TURN)
        yield
        self.shell("rmdir /t/turn")

    def free(self) -> float:
        """Return the free MiB of Linux."""
        return int(self.shell("grep MemFree: /proc/meminfo").split()[1]) / 1024

    def in_small_blocks(self) -> float:
        """Return the free MiB in blocks that are too small to report.

        Source: VIRTIO_BALLOON_HINT_BLOCK_ORDER in drivers/virtio/virtio_balloon.c
        """
        found = 0
        for zone in re.findall(r"zone +\w+ +([ \d]+)", self.shell("cat /proc/buddyinfo")):
            for order, count in enumerate(zone.split()[:HINT_ORDER]):
                found += int(count) * PAGE << order
        return found / MIB

    def wait_for_its_memory(self, mib: float = NEAR) -> tuple[float, float]:
        """Wait until the guest has reported its free memory, and this machine has it back.

        Linux reports seconds after memory is free: PAGE_REPORTING_DELAY in mm/page_reporting.c.
        """
        deadline = time.monotonic() + float(DEADLINE_S)
        while True:
            resident, needed = self.used()
            small = self.in_small_blocks()
            if needed - mib <= resident <= needed + small + mib:
                return resident, needed
            assert time.monotonic() < deadline, (resident, needed, small)

    def total(self) -> int:
        """Return MemTotal in MiB."""
        return int(self.shell("grep MemTotal: /proc/meminfo").split()[1]) >> 10

    def wait_for_total(self, mib: int) -> None:
        """Wait for a MemTotal: Linux uses a block some time after it has plugged it."""
        deadline = time.monotonic() + float(DEADLINE_S)
        while self.total() != pytest.approx(mib, abs=1):
            assert time.monotonic() < deadline, (self.total(), mib)
            time.sleep(0.5)


Boot = Callable[..., Any]


@pytest.fixture
def boot(pyvmm_cmd: list[str], tmp_path: Path) -> Boot:
    """Boot a kernel, with a file system in memory at /t."""

    @contextmanager
    def boot_kernel(
        version: str,
        room: int,
        files: Mapping[str, bytes] = MappingProxyType({}),
        params: str = "",
    ) -> Iterator[Guest]:
        modules = linux.modules(version, "virtio_mmio", "virtio_balloon", "virtio_mem")
        initrd = tmp_path / "initrd"
        initrd.write_bytes(linux.initramfs({**modules, **files}))
        machine = [
            "-c",
            "2",
            "-m",
            str(RAM),
            "--hotplug",
            str(room),
            "--balloon",
            f"-pquiet {params}",
        ]
        run = [*pyvmm_cmd, "run", "--name", NAME, "-i", str(initrd), *machine]
        with Session([*run, str(linux.image(version))]) as session:
            session.wait_for(PROMPT)
            guest = Guest(session, pyvmm_cmd)
            guest.shell("mkdir /t; mount -t tmpfs -o size=80% none /t")
            yield guest

    return boot_kernel


def test_memory_of_a_working_guest_is_taken_and_returned(boot: Boot) -> None:
    with boot("6.1", room=256) as guest:
        check_statistics(guest)
        guest.shell(LOAD)
        check_balloon(guest, rounds=1)
        check_collection(guest)
        check_plugging(guest, room=256)
        check_refusals(guest)


@pytest.mark.matrix
@pytest.mark.parametrize("version", KERNELS)
def test_balloon_takes_half_and_returns_it_five_times_under_load(boot: Boot, version: str) -> None:
    with boot(version, room=256) as guest:
        guest.shell(LOAD)
        check_balloon(guest, rounds=5)
        check_collection(guest)
        check_that_need_comes_first(guest)


@pytest.mark.matrix
@pytest.mark.parametrize("version", KERNELS)
def test_guest_finds_its_poisoned_free_pages_unchanged(boot: Boot, version: str) -> None:
    """For a page that became zero Linux would print "pagealloc: memory corruption"."""
    with boot(version, room=256, params="page_poison=1 init_on_alloc=0") as guest:
        assert "BALLOON_F_PAGE_POISON" in guest.tell("debug", "--devices", "-n", NAME)
        guest.shell("dd if=/dev/zero of=/t/big bs=1M count=150 2>/dev/null; rm /t/big; sleep 5")
        guest.tell("balloon", "-n", NAME, "--collect", "--wait", DEADLINE_S)
        guest.tell("balloon", "-n", NAME, "-i", "64", "--wait", DEADLINE_S)
        guest.tell("balloon", "-n", NAME, "-d", "64", "--wait", DEADLINE_S)
        guest.shell("dd if=/dev/zero of=/t/big bs=1M count=150 2>/dev/null")

        vm = guest.stat()
        assert vm["balloon"]["reported_bytes"] == vm["balloon"]["hinted_bytes"] == 0
        assert "corruption" not in guest.shell("dmesg")


@pytest.mark.matrix
@pytest.mark.parametrize("version", KERNELS)
def test_memory_grows_fourfold_and_shrinks_while_fp_stress_runs(
    boot: Boot, fp: Path, version: str
) -> None:
    with boot(version, room=768, files=selftests.in_guest(fp)) as guest:
        guest.shell("(cd /fp && exec ./fp-stress -t 600) >/fp.log 2>&1 & stress=$!")
        guest.shell(LOAD)
        check_plugging(guest, room=768)
        guest.shell("kill -INT $stress; wait $stress")
        log = guest.shell("cat /fp.log")
        assert "# Totals: pass:" in log
        assert "fail:0" in log
        assert "ismatch" not in log


@pytest.mark.matrix
@pytest.mark.parametrize("version", KERNELS)
def test_balloon_and_plugged_memory_are_restored_from_a_file(
    boot: Boot, pyvmm_cmd: list[str], tmp_path: Path, version: str
) -> None:
    file = tmp_path / "guest.snap"
    with boot(version, room=512) as guest:
        guest.tell("memory", NAME, str(RAM + 256), "--wait", DEADLINE_S)
        guest.tell("balloon", "-n", NAME, "-i", "64", "--wait", DEADLINE_S)
        guest.shell("dd if=/dev/urandom of=/t/kept bs=1M count=120 2>/dev/null")
        sums = guest.shell("md5sum /t/kept")
        before = guest.stat()
        guest.tell("save", NAME, str(file))

    with Session([*pyvmm_cmd, "restore", str(file)]) as session:
        session.type(b"\n")
        session.wait_for(PROMPT)
        guest = Guest(session, pyvmm_cmd)
        after = guest.stat()
        assert {**after["hotplug"]} == before["hotplug"]
        for name in ("target_bytes", "actual_bytes", "has_driver"):
            assert after["balloon"][name] == before["balloon"][name]
        assert guest.shell("md5sum /t/kept") == sums
        guest.tell("balloon", "-n", NAME, "--size", "0", "--wait", DEADLINE_S)
        guest.tell("memory", NAME, str(RAM + 512), "--wait", DEADLINE_S)
        guest.tell("memory", NAME, str(RAM), "--wait", DEADLINE_S)
        assert guest.shell("md5sum /t/kept") == sums
        assert guest.total() == pytest.approx(RAM, abs=50)


def check_statistics(guest: Guest) -> None:
    """Compare the statistics with the guest's /proc, when Linux is not reporting free pages.

    During a report Linux does not count those pages as free.
    Source: Linux, mm/page_reporting.c, page_reporting_cycle()
    """
    for _ in range(20):
        said = guest.fresh_stat()["guest_memory"]
        free = guest.free()
        if said["free_bytes"] / MIB == pytest.approx(free, abs=8):
            break

    assert said["total_bytes"] / MIB == pytest.approx(guest.total(), abs=1)
    assert said["free_bytes"] / MIB == pytest.approx(free, abs=8)


def check_balloon(guest: Guest, rounds: int) -> None:
    for number in range(rounds):
        guest.shell("dd if=/dev/zero of=/t/big bs=1M count=130 2>/dev/null")
        full, used = guest.wait_for_its_memory()
        guest.shell("rm /t/big")
        said = guest.tell("balloon", "-n", NAME, "-i", str(RAM // 2), "--wait", DEADLINE_S)
        assert said == f"{NAME}: balloon {RAM // 2} MiB\n"
        half, needed = guest.wait_for_its_memory()
        print(f"round {number}: {full:.0f} MiB for {used:.0f}, {half:.0f} for {needed:.0f}")
        assert half <= RAM / 2

        guest.tell("balloon", "-n", NAME, "-d", str(RAM // 2), "--wait", DEADLINE_S)
    assert "Out of memory" not in guest.shell("dmesg")


def check_collection(guest: Guest) -> None:
    """Check that unused memory is back at the end of the command, without a balloon.

    The guest can use it a little later: Linux's driver holds it until the round is over.
    The amount in blocks that Linux hints depends on the fragmentation of its memory, and on the
    blocks that it is reporting at the same time.
    """
    with guest.quiet():
        guest.shell("dd if=/dev/zero of=/t/big bs=1M count=100 2>/dev/null; rm /t/big")
        guest.shell("echo 1 >/proc/sys/vm/compact_memory")
        guest.tell("balloon", "-n", NAME, "--collect", "--wait", DEADLINE_S)
        vm = guest.stat()
        _, needed = guest.wait_for_its_memory()
        small = guest.in_small_blocks()

    resident = vm["memory_resident_bytes"] / MIB
    print(f"collected: {resident:.0f} MiB for {needed:.0f}, {small:.0f} free in small blocks")
    assert vm["balloon"]["hinted_bytes"] > 0
    assert resident <= needed + small + NEAR


def check_that_need_comes_first(guest: Guest) -> None:
    """Check that a guest without free memory uses its balloon's, and kills no process."""
    guest.tell("balloon", "-n", NAME, "-i", "140", "--wait", DEADLINE_S)
    before = deflated(guest)

    assert "1+0 records out" in guest.shell("dd if=/dev/zero of=/dev/null bs=110M count=1")

    assert deflated(guest) > before
    assert "Out of memory" not in guest.shell("dmesg")
    guest.tell("balloon", "-n", NAME, "--size", "0", "--wait", DEADLINE_S)


def deflated(guest: Guest) -> int:
    """Return how many bytes have left the balloon so far."""
    (balloon,) = (d for d in guest.stat()["devices"] if d["device"] == "virtio-balloon")
    return int(balloon["counts"]["deflated_bytes"])


def check_plugging(guest: Guest, room: int) -> None:
    """Check that files keep their content when memory is plugged and unplugged."""
    before = guest.total()
    plugged = guest.tell("memory", NAME, str(RAM + room), "--wait", DEADLINE_S)
    assert f"{room} MiB of {room} MiB plugged" in plugged
    guest.wait_for_total(before + room)

    guest.shell("mount -o remount,size=80% /t")
    guest.shell("dd if=/dev/urandom of=/t/kept bs=1M count=50 2>/dev/null")
    sums = guest.shell("md5sum /t/kept")
    count = room - 30
    guest.shell(f"dd if=/dev/zero of=/t/big bs=1M count={count} 2>/dev/null")
    full, _ = guest.wait_for_its_memory(0.1 * (RAM + room))
    assert full > count
    guest.shell("rm /t/big")

    guest.tell("memory", NAME, str(RAM), "--wait", DEADLINE_S)
    vm = guest.stat()
    print(f"full: {full:.0f} MiB; unplugged: {vm['memory_resident_bytes'] / MIB:.0f} MiB")
    assert vm["hotplug"]["plugged_bytes"] == 0
    assert vm["memory_resident_bytes"] <= RAM * MIB == vm["memory_bytes"]
    assert guest.total() == before
    assert guest.shell("md5sum /t/kept") == sums
    guest.shell("rm /t/kept")


def check_refusals(guest: Guest) -> None:
    """Check that each refusal is clear, and changes nothing."""
    before = guest.stat()

    said = guest.tell("memory", NAME, str(RAM + 512), code=2)
    assert "768 MiB is more than there is room for: 256 MiB of RAM and --hotplug 256 MiB" in said
    assert "less than the guest's RAM" in guest.tell("memory", NAME, "128", code=2)
    assert "in blocks of 2 MiB" in guest.tell("memory", NAME, str(RAM + 1), code=2)
    said = guest.tell("balloon", "-n", NAME, "-i", "512", code=2)
    assert "a balloon of 512 MiB is more than the guest has: 256 MiB" in said
    said = guest.tell("balloon", "-n", NAME, "-d", "1", code=2)
    assert "it cannot be made 1 MiB smaller" in said

    after = guest.stat()
    for what in ("balloon", "hotplug"):
        for name in ("target_bytes", "requested_bytes", "actual_bytes", "plugged_bytes"):
            assert before[what].get(name) == after[what].get(name)
