"""Runs of a vCPU: every kind of exit, and kicks."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import pytest

from pyvmm.arm64.unitregs import PsciVersion
from pyvmm.errors import KvmError
from pyvmm.kvm import regs, uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason, MpState, SystemEvent, VcpuFeature
from tests.arm64 import psci
from tests.kvm.guest import EXITS_AT, MMIO, RAM_BASE, guest, running

pytestmark = pytest.mark.kvm

EC_SHIFT = 26  # of ESR_ELx: Arm ARM DDI 0487, D23.2
EC_BREAKPOINT, EC_STEP, EC_WATCHPOINT, EC_BRK = 0x30, 0x32, 0x34, 0x3C


def mmio(taken: Exit) -> tuple[int, int, bool, int]:
    """Return an MMIO exit's values."""
    assert taken.reason == ExitReason.MMIO, str(taken)
    return taken.address, taken.length, taken.is_write, taken.data


def test_mmio_write_and_reads_of_each_size() -> None:
    with guest("store_then_load") as made:
        made.set(x0=MMIO, x1=0xFFFF_FFFF_1234_5678)

        written = made.vcpu.run()
        reads = []
        for answer in (0xAABB_CCDD_1122_3344, 0x1_99, 0x0123_4567_89AB_CDEF):
            reads.append(mmio(made.vcpu.run()))
            made.vcpu.set_mmio_data(answer)
        last = made.vcpu.run()

        assert mmio(written) == (MMIO, 4, True, 0x1234_5678)
        assert reads == [
            (MMIO + 4, 4, False, 0),
            (MMIO + 8, 1, False, 0),
            (MMIO + 16, 8, False, 0),
        ]
        assert (made.x(2), made.x(3), made.x(4)) == (0x1122_3344, 0x99, 0x0123_4567_89AB_CDEF)
        assert mmio(last) == (MMIO + 24, 2, True, 0xCDEF)


def test_exit_is_unchanged_by_the_next_run() -> None:
    with guest("store_then_load") as made:
        made.set(x0=MMIO, x1=7)

        first = made.vcpu.run()
        made.vcpu.run()

        assert mmio(first) == (MMIO, 4, True, 7)


def test_kick_then_run_completes_a_pending_read() -> None:
    with guest("store_then_load") as made:
        made.set(x0=MMIO, x1=7)
        made.vcpu.run()
        made.vcpu.run()
        made.vcpu.set_mmio_data(0x55)

        made.vcpu.kick()
        taken = made.vcpu.run()

        assert taken.reason == ExitReason.INTR
        assert (made.pc, made.x(2)) == (8, 0x55)


@pytest.mark.parametrize(
    ("function", "event"),
    [
        (psci.Function.SYSTEM_OFF, SystemEvent.SHUTDOWN),
        (psci.Function.SYSTEM_RESET, SystemEvent.RESET),
    ],
)
def test_psci_power_call_is_a_system_event(function: int, event: int) -> None:
    with guest("call") as made:
        made.set(x0=function)

        taken = made.vcpu.run()

        assert (taken.reason, taken.type) == (ExitReason.SYSTEM_EVENT, event)


def test_kvm_handles_psci_version() -> None:
    with guest("call") as made:
        made.set(x0=psci.Function.PSCI_VERSION, **{f"x{EXITS_AT}": MMIO})

        address, length, is_write, data = mmio(made.vcpu.run())

        version = PsciVersion(data)
        assert (address, length, is_write) == (MMIO, 8, True)
        assert version == made.vcpu.get_one_reg(regs.PSCI_VERSION)
        assert version >= psci.V1_0


def test_psci_cpu_on_starts_a_stopped_vcpu() -> None:
    with guest("call", vcpus=2) as made:
        second = made.vcpus[1]
        made.set(
            x0=psci.Function.CPU_ON_64,
            x1=second.get_one_reg(regs.sysreg(3, 0, 0, 0, 5)) & 0xFF_FFFF,
            x2=RAM_BASE + 4,
            x3=0xC0FFEE,
            **{f"x{EXITS_AT}": MMIO},
        )
        second.set_one_reg(regs.X(EXITS_AT), MMIO)

        result = made.vcpu.run().data
        started = second.get_mp_state()
        with running(second) as join:
            second.kick()
            join()

        assert (result, started) == (psci.Return.SUCCESS, MpState.RUNNABLE)
        assert second.get_one_reg(regs.X(0)) == 0xC0FFEE


def test_undecodable_access_is_an_error_with_a_hint() -> None:
    with guest("undecodable") as made:
        made.set(x0=MMIO)

        with pytest.raises(KvmError, match="KVM_RUN") as caught:
            made.vcpu.run()

    assert caught.value.errno == errno.ENOSYS
    assert "ARM_NISV_TO_USER" in (caught.value.hint or "")


def test_undecodable_access_is_an_exit_when_enabled() -> None:
    with guest("undecodable") as made:
        made.vm.enable_cap(Cap.ARM_NISV_TO_USER)
        made.set(x0=MMIO)

        taken = made.vcpu.run()

        assert taken.reason == ExitReason.ARM_NISV
        assert taken.fields["fault_ipa"] == MMIO


def test_run_with_a_pmu_that_was_not_initialised_is_refused() -> None:
    features = (VcpuFeature.PSCI_0_2, VcpuFeature.PMU_V3)
    with guest("spin", features=features, gic=True) as made, pytest.raises(KvmError) as caught:
        made.vcpu.run()

    assert caught.value.errno == errno.EINVAL


# Kick


def test_kick_ends_a_run_of_a_spinning_guest() -> None:
    with guest("count") as made:
        while made.x(0) == 0:  # the first kicks may come before the guest runs
            with running(made.vcpu) as join:
                time.sleep(0.1)
                made.vcpu.kick()

                assert join().reason == ExitReason.INTR


@pytest.mark.parametrize("program", ["wait", "spin"])
def test_kick_before_a_run_ends_it_at_once(program: str) -> None:
    with guest(program) as made:
        made.vcpu.kick()

        taken = made.vcpu.run()

        assert taken.reason == ExitReason.INTR
        assert made.pc == 0


def test_kicks_before_a_run_count_as_one() -> None:
    with guest("store_then_load") as made:
        made.set(x0=MMIO)
        for _ in range(5):
            made.vcpu.kick()

        reasons = [made.vcpu.run().reason for _ in range(2)]

        assert reasons == [ExitReason.INTR, ExitReason.MMIO]


def test_kick_ends_a_wait_for_interrupt() -> None:
    with guest("wait", gic=True) as made, running(made.vcpu) as join:
        time.sleep(0.05)
        made.vcpu.kick()

        assert join().reason == ExitReason.INTR


def test_kick_ends_a_run_of_a_stopped_vcpu() -> None:
    with guest("spin", vcpus=2) as made, running(made.vcpus[1]) as join:
        time.sleep(0.05)
        made.vcpus[1].kick()

        assert join().reason == ExitReason.INTR


def test_kick_is_never_lost() -> None:
    """Kick at any moment: before the run, at its entry, in the guest, at its exit."""
    rounds = 300
    with guest("spin") as made:
        seen = threading.Semaphore(0)
        wanted = 0
        finished = []

        def run() -> None:
            for turn in range(rounds):
                while wanted <= turn:  # stays in the guest until a request
                    made.vcpu.run()
                seen.release()
            finished.append(True)

        thread = threading.Thread(target=run)
        thread.start()
        for turn in range(rounds):
            time.sleep(turn % 7 * 0.0001)
            wanted = turn + 1
            made.vcpu.kick()
            assert seen.acquire(timeout=120), f"kick {turn} was lost"
        thread.join()

    assert finished == [True]


def test_kicks_from_many_threads_reach_many_vcpus() -> None:
    with guest("spin", vcpus=4) as made:
        stop = threading.Event()
        for vcpu in made.vcpus[1:]:
            vcpu.set_mp_state(MpState.RUNNABLE)
            vcpu.set_one_reg(regs.PC, RAM_BASE)

        def run(number: int) -> None:
            while not stop.is_set():
                made.vcpus[number].run()

        def kick() -> None:
            for _ in range(50):
                for vcpu in made.vcpus:
                    vcpu.kick()

        runners = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        kickers = [threading.Thread(target=kick) for _ in range(3)]
        for thread in (*runners, *kickers):
            thread.start()
        for thread in kickers:
            thread.join()
        stop.set()
        kick()
        for thread in runners:
            thread.join(120)

        assert not any(thread.is_alive() for thread in runners)


def test_another_signal_also_ends_a_run() -> None:
    with guest("spin") as made:
        came = []
        old = signal.signal(signal.SIGUSR1, lambda *_: came.append(True))
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.1):  # the first may come before the run
                os.kill(os.getpid(), signal.SIGUSR1)

        sender = threading.Thread(target=send)
        sender.start()

        taken = made.vcpu.run()

        ended.set()
        sender.join()
        signal.signal(signal.SIGUSR1, old)
        assert taken.reason == ExitReason.INTR
        assert came


def test_kick_reaches_a_thread_with_blocked_signals() -> None:
    with guest("spin") as made:
        exits = []

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            exits.append(made.vcpu.run())

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.1)
        made.vcpu.kick()
        thread.join(120)

        assert [taken.reason for taken in exits] == [ExitReason.INTR]


def test_close_of_a_running_vcpu_is_refused() -> None:
    with guest("spin") as made, running(made.vcpu) as join:
        deadline = time.monotonic() + 60
        while not made.vcpu._state.thread:  # set by the thread that enters KVM_RUN
            assert time.monotonic() < deadline
            time.sleep(0.01)

        with pytest.raises(RuntimeError, match="vCPU 0 is running"):
            made.vcpu.close()
        made.vcpu.kick()
        join()


def test_other_threads_run_while_a_guest_runs() -> None:
    """Kick from this thread: KVM_RUN releases the GIL."""
    with guest("spin") as made, running(made.vcpu) as join:
        counted = sum(range(10_000))
        made.vcpu.kick()

        assert (join().reason, counted) == (ExitReason.INTR, 49_995_000)


# Guest debug


def test_single_step_stops_after_every_instruction() -> None:
    with guest("five_adds") as made:
        made.vcpu.set_guest_debug(uapi.GUESTDBG_ENABLE | uapi.GUESTDBG_SINGLESTEP)

        places = []
        for _ in range(3):
            taken = made.vcpu.run()
            places.append((taken.reason, taken.fields["hsr"] >> EC_SHIFT, made.pc, made.x(0)))

        assert places == [(ExitReason.DEBUG, EC_STEP, 4 * n, n) for n in (1, 2, 3)]


def test_guest_debug_ends_with_control_0() -> None:
    with guest("store_then_load") as made:
        made.set(x0=MMIO)
        made.vcpu.set_guest_debug(uapi.GUESTDBG_ENABLE | uapi.GUESTDBG_SINGLESTEP)

        made.vcpu.set_guest_debug(0)

        assert made.vcpu.run().reason == ExitReason.MMIO


def test_software_breakpoint_exits_to_user_space() -> None:
    with guest("break") as made:
        made.vcpu.set_guest_debug(uapi.GUESTDBG_ENABLE | uapi.GUESTDBG_USE_SW_BP)

        taken = made.vcpu.run()

        assert (taken.reason, made.pc) == (ExitReason.DEBUG, 4)
        assert taken.fields["hsr"] >> EC_SHIFT == EC_BRK
        assert taken.fields["hsr"] & 0xFFFF == 7


def test_hardware_breakpoint_stops_at_its_address() -> None:
    with guest("five_adds") as made:
        enabled = 0b1111 << 5 | 0b11 << 1 | 1  # BAS all bytes, PMC EL1 and EL0, E

        made.vcpu.set_guest_debug(
            uapi.GUESTDBG_ENABLE | uapi.GUESTDBG_USE_HW, breakpoints=[(enabled, RAM_BASE + 12)]
        )
        taken = made.vcpu.run()

        assert (taken.reason, taken.fields["hsr"] >> EC_SHIFT) == (ExitReason.DEBUG, EC_BREAKPOINT)
        assert (made.pc, made.x(0)) == (12, 3)


def test_hardware_watchpoint_reports_the_address() -> None:
    with guest("store_then_load") as made:
        where = RAM_BASE + 0x1000
        enabled = 0xFF << 5 | 0b11 << 3 | 0b11 << 1 | 1  # BAS, LSC loads and stores, PAC, E
        made.set(x0=where)

        made.vcpu.set_guest_debug(
            uapi.GUESTDBG_ENABLE | uapi.GUESTDBG_USE_HW, watchpoints=[(enabled, where + 16)]
        )
        taken = made.vcpu.run()

        assert (taken.reason, taken.fields["hsr"] >> EC_SHIFT) == (ExitReason.DEBUG, EC_WATCHPOINT)
        assert taken.fields["far"] == where + 16
