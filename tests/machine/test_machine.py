"""Machines as a user of the library sees them, on a real KVM."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm import layout
from pyvmm.arm64 import vl
from pyvmm.arm64.control import Tcr
from pyvmm.config import Config, SveRequest
from pyvmm.control.service import resident
from pyvmm.errors import GuestError, HostError, ImageError, TimeoutExpired
from pyvmm.kvm import native, regs, sve
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.system import System
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from tests import programs

pytestmark = pytest.mark.kvm

SYSTEM_OFF = 0x8400_0008  # PSCI.  Source: Arm DEN 0022
SYSTEM_RESET = 0x8400_0009
UPPER = 0xFFFF_FF80_0000_0000  # addresses of 39 bits, by TTBR1_EL1

Boot = Callable[..., Machine]


class Screen:
    """Records a guest's output."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def boot(tmp_path: Path, screen: Screen) -> Iterator[Boot]:
    """Make a machine that runs a program with these X1 and X2, for at most 120 s."""
    with ExitStack() as stack:

        def make(program: str, x1: int = 0, x2: int = 0, **options: Any) -> Machine:
            hooks = {
                name: options.pop(name)
                for name in ("on_unclaimed", "set_blocking", "log")
                if name in options
            }
            output = options.pop("output", screen.write)
            image = programs.write(program, tmp_path)
            shape = {"vcpus": 1, "memory": 16 * MIB, "timeout_s": 120.0} | options
            machine = Machine(Config(image=image, **shape), output, **hooks)
            stack.enter_context(machine)
            machine.vcpus[0].set_one_reg(regs.X(1), x1)
            machine.vcpus[0].set_one_reg(regs.X(2), x2)
            return machine

        yield make


@pytest.fixture(scope="module")
def host_vls() -> frozenset[int]:
    """Return the host's vector lengths; skip the test if there are none."""
    with System.open() as system:
        lengths = sve.host_vector_lengths(system)
    if not lengths:
        pytest.skip("the host has no SVE")
    return lengths


@pytest.mark.parametrize(("written", "code"), [(0, 0), (7, 7), (255, 255), (0x1_02, 2)])
def test_exit_register_ends_the_run_with_the_guests_code(
    boot: Boot, written: int, code: int
) -> None:
    machine = boot("store", x1=written, x2=layout.EXIT.base)

    assert machine.run() == code


@pytest.mark.parametrize("function", [SYSTEM_OFF, SYSTEM_RESET])
def test_psci_off_and_reset_end_the_run_with_code_0(boot: Boot, function: int) -> None:
    machine = boot("call")
    machine.vcpus[0].set_one_reg(regs.X(0), function)

    assert machine.run() == 0
    assert machine.was_reset == (function == SYSTEM_RESET)


def test_boot_cpu_finds_the_device_tree_in_x0(boot: Boot) -> None:
    machine = boot("spin")

    address = machine.vcpus[0].get_one_reg(regs.X(0))

    assert address == machine.image.dtb
    assert machine.memory.read(address, 4) == bytes.fromhex("d00dfeed")
    assert machine.memory.read(address, len(machine.dtb)) == machine.dtb


def test_console_carries_both_ways_and_loses_nothing(boot: Boot, screen: Screen) -> None:
    machine = boot("echo", x2=layout.UART.base)
    typed = bytes(range(1, 101))
    left = bytearray(typed)
    room = threading.Event()
    machine.console.on_room(room.set)
    machine.start()

    while left:
        del left[: machine.console.send(bytes(left))]
        assert not left or room.wait(120)
        room.clear()
    deadline = time.monotonic() + 120
    while len(screen.text) < len(typed) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert screen.text == typed


def test_unclaimed_access_reads_zero_and_reaches_the_callback(boot: Boot) -> None:
    heard: list[tuple[int, Exit]] = []
    machine = boot(
        "load",
        x1=99,
        x2=layout.EXIT.base,
        on_unclaimed=lambda vcpu, access: heard.append((vcpu, access)),
    )
    machine.vcpus[0].set_one_reg(regs.X(3), layout.FLASH.base)

    assert machine.run() == 0
    assert [(vcpu, access.address, access.length) for vcpu, access in heard] == [
        (0, layout.FLASH.base, 4)
    ]


def test_access_that_is_not_emulated_is_a_guest_error(boot: Boot) -> None:
    machine = boot("atomic", x2=layout.UART.base)

    with pytest.raises(GuestError) as caught:
        machine.run()

    assert f"{layout.UART.base:#x}" in caught.value.message
    assert f"{machine.image.entry:#x}" in caught.value.message
    assert caught.value.exit_code == 1


def test_machine_reports_once_why_a_guest_makes_no_progress(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("undefined", log=said.append)

    start_until_said(machine, said)
    machine.say_why()

    assert said == ["vCPU 0 faults for ever at 0x200: it has no exception vectors (VBAR_EL1 is 0)"]


def test_machine_reports_why_a_guest_hangs_at_virtual_addresses(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("hang in a vector", log=said.append)
    vcpu, table = machine.vcpus[0], machine.memory.base + MIB
    block = 0x401 | machine.memory.base  # of 1 GiB, with the access flag
    machine.memory.write(table + 8 * (machine.memory.base >> 30), block.to_bytes(8, "little"))
    vcpu.sysreg["TCR_EL1"] = Tcr.of(T0SZ=25, T1SZ=25, TG1=2, IPS=1)
    vcpu.sysreg["TTBR1_EL1"] = table
    vcpu.sysreg["MAIR_EL1"] = 0xFF
    vcpu.sysreg["SCTLR_EL1"] = vcpu.sysreg["SCTLR_EL1"].replace(M=1)
    vcpu.set_one_reg(regs.PC, UPPER | machine.image.entry)

    start_until_said(machine, said)

    assert said == [
        "vCPU 0 stays at 0xffffff8080080200, in its exception vectors, after an exception at "
        "0xffffff808008001c: BRK #0x7"
    ]


def start_until_said(machine: Machine, said: list[str]) -> None:
    """Start a machine, and look at it until its vCPU has run."""
    machine.start()
    deadline = time.monotonic() + 120
    while not said and time.monotonic() < deadline:
        machine.say_why(sure=True)


def test_machine_reports_nothing_when_the_guest_is_paused_or_has_ended(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("undefined", log=said.append)
    machine.start()

    with machine.paused():
        machine.say_why()
    machine.stop()
    machine.say_why()

    assert said == []
    assert not machine.is_paused


def test_guest_continues_after_a_diagnosis(boot: Boot) -> None:
    machine = boot("count", vcpus=2)
    machine.start()

    def counted() -> int:
        with machine.paused():
            return machine.vcpus[0].get_one_reg(regs.X(1))

    machine.say_why(sure=True)
    before = counted()
    machine.say_why(sure=True)

    deadline = time.monotonic() + 120
    while counted() <= before:
        assert time.monotonic() < deadline, "the guest stands still"


def test_timeout_ends_a_guest_that_runs_on(boot: Boot) -> None:
    machine = boot("spin", timeout_s=0.3)

    with pytest.raises(TimeoutExpired, match=r"within 0\.3 s"):
        machine.run()


def test_run_whose_time_ran_out_earlier_ends_before_the_guest_starts(boot: Boot) -> None:
    calls: list[str] = []
    machine = boot("spin", timeout_s=2.5)
    machine.before_time_out = lambda: calls.append("before the end")

    with pytest.raises(TimeoutExpired, match=r"within 2\.5 s"):
        machine.run(deadline=time.monotonic())

    assert calls == ["before the end"]
    assert not machine.has_started


def test_run_whose_time_ran_out_reports_the_silent_reset_before_it(boot: Boot) -> None:
    said: list[str] = []
    before = boot("call", timeout_s=2.5)
    before.vcpus[0].set_one_reg(regs.X(0), SYSTEM_RESET)
    before.resets = 40
    assert before.run() == 0
    machine = boot("spin", timeout_s=2.5, log=said.append)
    machine.follow(before)

    with pytest.raises(TimeoutExpired):
        machine.run(deadline=time.monotonic())

    assert machine.resets == 41
    assert said == ["the guest has printed nothing since reset 40, and resets"]


def test_reset_during_the_look_at_a_timeout_counts_as_a_reset(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --reboot the next machine finds that the time is out."""
    calls: list[str] = []
    machine = boot("call", timeout_s=0.01)
    machine.vcpus[0].set_one_reg(regs.X(0), SYSTEM_RESET)
    machine.before_time_out = lambda: calls.append("before the end")
    monkeypatch.setattr(machine, "say_why", lambda: let_reset(machine))
    machine.pause()

    assert machine.run() == 0

    assert machine.was_reset
    assert calls == []


def let_reset(machine: Machine) -> None:
    """Resume a guest, and wait until it has reset."""
    machine.resume()
    deadline = time.monotonic() + 120
    while not machine.was_reset and time.monotonic() < deadline:
        time.sleep(0.001)


def test_machine_reports_a_silent_guest_that_resets(boot: Boot) -> None:
    said: list[str] = []
    machine = boot("call", log=said.append)
    machine.vcpus[0].set_one_reg(regs.X(0), SYSTEM_RESET)
    machine.resets = 40
    machine.start()
    let_reset(machine)

    machine.say_why()

    assert said == ["the guest has printed nothing since reset 40, and resets"]


def test_stop_from_another_thread_ends_the_run(boot: Boot) -> None:
    machine = boot("spin")
    threading.Timer(0.2, machine.stop, (5,)).start()

    assert machine.run() == 5


def test_close_ends_a_running_guest(boot: Boot) -> None:
    machine = boot("spin", vcpus=2)
    machine.start()
    before = threading.active_count()

    machine.close()
    machine.close()

    assert threading.active_count() == before - 2


def test_output_error_ends_the_run_and_is_raised(boot: Boot) -> None:
    def output(data: bytes) -> None:
        raise ValueError("no paper")

    machine = boot("flood", x1=65, x2=layout.UART.base, output=output)

    with pytest.raises(ValueError, match="no paper"):
        machine.run()


def test_pause_stops_the_guest_and_resume_continues_it(boot: Boot) -> None:
    machine = boot("count")
    machine.start()

    first = counted_beyond(machine, 0)
    time.sleep(0.1)
    still = machine.vcpus[0].get_one_reg(regs.X(1))
    machine.resume()
    later = counted_beyond(machine, still)

    assert first == still < later


def counted_beyond(machine: Machine, number: int) -> int:
    """Let the guest count past a number, and pause it."""
    deadline = time.monotonic() + 120
    while True:
        time.sleep(0.05)
        machine.pause()
        counted = machine.vcpus[0].get_one_reg(regs.X(1))
        if counted > number:
            return counted
        assert time.monotonic() < deadline
        machine.resume()


@pytest.mark.parametrize("vcpus", [1, 2, 3, 8, 17])
def test_every_vcpu_exists_and_only_the_first_is_on(boot: Boot, vcpus: int) -> None:
    machine = boot("store", x2=layout.EXIT.base, vcpus=vcpus)

    states = [vcpu.get_mp_state() for vcpu in machine.vcpus]

    assert states == [0] + [5] * (vcpus - 1)
    assert machine.dtb.count(b"arm,arm-v8\0") == vcpus
    assert machine.run() == 0


def test_maximum_of_vcpus_works_and_one_more_is_refused(boot: Boot) -> None:
    with System.open() as system:
        most = min(system.check_extension(Cap.MAX_VCPUS), 64)  # all 512 take long
        limit = system.check_extension(Cap.MAX_VCPUS)

    assert boot("store", x2=layout.EXIT.base, vcpus=most).run() == 0
    with pytest.raises(HostError, match=f"at most {limit} vCPUs"):
        boot("store", vcpus=limit + 1)


@pytest.mark.parametrize("mib", [4, 64, 255, 1024])
def test_memory_has_the_requested_size(boot: Boot, mib: int) -> None:
    machine = boot("store", x2=layout.EXIT.base, memory=mib * MIB)

    assert machine.memory.size == mib * MIB
    assert machine.run() == 0


def test_memory_beyond_the_address_limit_is_refused(boot: Boot) -> None:
    with System.open() as system:
        bits = system.check_extension(Cap.ARM_VM_IPA_SIZE)

    with pytest.raises(HostError, match=f"this host has {bits}"):
        boot("store", memory=1 << bits)


def test_memory_beyond_the_hosts_takes_only_what_the_guest_uses(boot: Boot) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    machine = boot("store", x2=layout.EXIT.base, memory=8 * physical // MIB * MIB)

    assert machine.run() == 0
    assert resident((machine.memory.host_address, machine.memory.size)) < 16 * MIB


def test_memory_beyond_a_strict_commit_limit_is_refused(boot: Boot) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    policy = Path("/proc/sys/vm/overcommit_memory")
    if not os.access(policy, os.W_OK):
        pytest.skip("only root may set vm.overcommit_memory")
    before = policy.read_text(encoding="ascii")

    policy.write_text("2", encoding="ascii")
    try:
        with pytest.raises(HostError, match=r"cannot map .*: Cannot allocate memory") as caught:
            boot("store", memory=4 * physical // MIB * MIB)
    finally:
        policy.write_text(before, encoding="ascii")

    hint = caught.value.hint or ""
    assert "for all processes to ask for" in hint
    assert hint.endswith("(vm.overcommit_memory=2); use a smaller `memory`")


def test_host_limit_is_reported_before_a_missing_image(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"

    with pytest.raises(HostError, match="vCPUs"):
        Machine(Config(image=nothing, vcpus=100_000))
    with pytest.raises(ImageError, match="nothing"):
        Machine(Config(image=nothing, vcpus=1, memory=16 * MIB))


def test_refused_machine_leaves_nothing_open(boot: Boot) -> None:
    boot("store").close()  # opens what stays open
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208

    for options in ({"vcpus": 100_000}, {"memory": 1 << 60}, {"initrd": Path("/nonexistent")}):
        with pytest.raises((HostError, ImageError)):
            boot("store", **options)

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_every_vcpu_gets_each_legal_set_and_the_guest_sees_it(
    boot: Boot, host_vls: frozenset[int]
) -> None:
    for asked in vl.legal_sets(host_vls):
        machine = boot("quadwords", x2=layout.EXIT.base, vcpus=3, sve=SveRequest(vls=asked))

        assert [sve.read_vls(vcpu) for vcpu in machine.vcpus] == [asked] * 3
        assert machine.vls == asked
        assert machine.run() == max(asked) // 128
        machine.close()


def test_illegal_sets_are_refused_with_sets_that_work(boot: Boot, host_vls: frozenset[int]) -> None:
    legal = vl.legal_sets(host_vls)
    without_first = [vls - {128} for vls in legal if vls - {128}]
    too_long = [host_vls | {length} for length in vl.LENGTHS - host_vls]

    for asked in [*without_first, *too_long]:
        with pytest.raises(HostError) as caught:
            boot("quadwords", sve=SveRequest(vls=asked))

        assert caught.value.hint is not None
        assert "`sve.vls`=" in caught.value.hint


def test_sve_is_on_at_the_hosts_full_set_by_default(boot: Boot, host_vls: frozenset[int]) -> None:
    assert boot("spin").vls == host_vls


def test_sve_can_be_limited_and_disabled(boot: Boot, host_vls: frozenset[int]) -> None:
    bounded = boot("spin", sve=SveRequest(max_vl=256))
    off = boot("spin", sve=SveRequest(off=True))

    assert bounded.vls == {length for length in host_vls if length <= 256}
    assert off.vls == frozenset()
    assert regs.SVE_VLS not in off.vcpus[0].get_reg_list()


def virtual_time(machine: Machine) -> int:
    return machine.vcpus[0].get_one_reg(regs.TIMER_CNT)


def test_virtual_time_passes_only_while_the_guest_runs(boot: Boot) -> None:
    machine = boot("count", vcpus=2)
    machine.start()
    began = time.monotonic()
    with machine.paused():
        before = virtual_time(machine)
        time.sleep(2)
    time.sleep(0.1)
    with machine.paused():
        after = virtual_time(machine)
    took = time.monotonic() - began

    assert 0 < (after - before) / native.counter_frequency() <= took - 2


def test_paused_block_keeps_a_paused_guest_paused(boot: Boot) -> None:
    machine = boot("count")
    machine.start()
    machine.pause()

    with machine.paused():
        pass

    assert machine.is_paused
    counted = machine.vcpus[0].get_one_reg(regs.X(1))
    time.sleep(0.1)
    assert machine.vcpus[0].get_one_reg(regs.X(1)) == counted


def test_pause_does_not_wait_for_a_stalled_reader(boot: Boot) -> None:
    stalled = threading.Event()
    released = threading.Event()
    waited: list[bool] = []

    def output(data: bytes) -> None:
        stalled.set()
        waited.append(released.wait(120))

    machine = boot(
        "flood", x1=ord("x"), x2=layout.UART.base, output=output,
        set_blocking=lambda now: released.clear() if now else released.set(),
    )  # fmt: skip
    machine.start()
    assert stalled.wait(120)

    machine.pause()

    assert waited[0]
    assert machine.is_paused


def test_exits_are_counted_by_device_and_direction(boot: Boot) -> None:
    machine = boot("store", x2=0x1234_0000)
    machine.start()
    deadline = time.monotonic() + 120
    while not machine.counts.exits()[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    machine.pause()

    assert machine.counts.exits() == [{"INTR": 1, "unclaimed write": 1}]


def test_kernel_counts_have_kvms_names(boot: Boot) -> None:
    machine = boot("store", x2=layout.EXIT.base)
    machine.run()

    with System.open() as system:
        offered = system.has(Cap.BINARY_STATS_FD)
    (counts,) = machine.counts.kernel() if offered else ({"exits": 1, "mmio_exit_user": 1},)

    assert counts["exits"] >= counts["mmio_exit_user"] >= 1
