"""The loop, with real descriptors, timers, threads and signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pyvmm.base.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop() as made:
        made.after(10, made.stop)  # also ends a broken test
        yield made


def test_watch_calls_back_when_readable(loop: Loop) -> None:
    event = os.eventfd(0)
    seen = []

    def on_event() -> None:
        seen.append(os.eventfd_read(event))
        loop.stop()

    loop.watch(event, on_event)
    os.eventfd_write(event, 7)
    loop.run()
    os.close(event)

    assert seen == [7]


def test_watch_takes_descriptors_epoll_refuses(loop: Loop) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    seen = []

    def on_end() -> None:
        seen.append(os.read(null, 1))
        loop.stop()

    loop.watch(null, on_end)
    loop.run()
    os.close(null)

    assert seen == [b""]


def test_unwatch_in_a_round_prevents_the_callback(loop: Loop) -> None:
    events = [os.eventfd(1), os.eventfd(1)]
    seen = []

    def forget_the_other(mine: int) -> None:
        seen.append(mine)
        loop.unwatch(events[0])
        loop.unwatch(events[1])
        loop.stop()

    loop.watch(events[0], lambda: forget_the_other(0))
    loop.watch(events[1], lambda: forget_the_other(1))
    loop.run()
    for event in events:
        os.close(event)

    assert len(seen) == 1


def test_unwatch_of_an_unknown_descriptor_is_fine(loop: Loop) -> None:
    loop.unwatch(99)


def test_after_calls_back_in_order_of_time(loop: Loop) -> None:
    seen: list[str] = []
    loop.after(0.02, lambda: seen.append("late"))
    loop.after(0.02, loop.stop)
    loop.after(0.0, lambda: seen.append("early"))

    loop.run()

    assert seen == ["early", "late"]


def test_cancelled_timer_does_not_call_back(loop: Loop) -> None:
    seen: list[str] = []
    timer = loop.after(0.01, lambda: seen.append("cancelled"))
    loop.after(0.03, loop.stop)

    loop.cancel(timer)
    loop.cancel(timer)
    loop.run()

    assert seen == []


def test_call_from_another_thread_runs_in_the_loops_thread(loop: Loop) -> None:
    threads = []

    def note() -> None:
        threads.append(threading.get_ident())
        loop.stop()

    caller = threading.Thread(target=lambda: loop.call(note))
    caller.start()
    loop.run()
    caller.join()

    assert threads == [threading.get_ident()]


def test_call_from_a_call_waits_for_the_next_round(loop: Loop) -> None:
    seen = []

    def first() -> None:
        loop.call(lambda: seen.append("second"))
        seen.append("first")
        loop.after(0.01, loop.stop)

    loop.call(first)
    loop.run()

    assert seen == ["first", "second"]


def test_stop_before_run_makes_it_return_at_once(loop: Loop) -> None:
    loop.stop()

    loop.run()


def test_signal_wakes_the_loop_and_calls_back(loop: Loop) -> None:
    seen = []

    def on_usr1() -> None:
        seen.append("USR1")
        loop.stop()

    loop.on_signal(signal.SIGUSR1, on_usr1)
    sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    sender.start()
    loop.run()
    sender.join()

    assert seen == ["USR1"]


def test_signal_that_came_before_run_is_not_lost(loop: Loop) -> None:
    loop.on_signal(signal.SIGUSR1, loop.stop)
    os.kill(os.getpid(), signal.SIGUSR1)

    loop.run()


def test_close_restores_the_signal_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)

    with Loop() as loop:
        loop.on_signal(signal.SIGTERM, loop.stop)
        loop.on_signal(signal.SIGUSR1, loop.stop)
        during = signal.getsignal(signal.SIGTERM)

    assert during != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_close_leaves_no_descriptor_open_and_can_be_repeated() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names

    loop = Loop()
    loop.on_signal(signal.SIGUSR1, loop.stop)
    loop.close()
    loop.close()

    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names


def test_run_raises_the_error_of_a_callback(loop: Loop) -> None:
    def fail() -> None:
        raise ValueError("no")

    loop.call(fail)

    with pytest.raises(ValueError, match="no"):
        loop.run()
