"""One run as a process, with a fake pyvmm."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm.commands.sweep._line import command, query
from pyvmm.errors import HostError
from pyvmm.host.settings import HostSettings
from pyvmm.sweep import work
from pyvmm.sweep.plan import Guest, Run
from tests.sweep.fake import PROBE

pytestmark = pytest.mark.usefixtures("fake")

HERE = HostSettings()
TWO = frozenset({128, 256})


def run(image: str, **fields: Any) -> Run:
    return planned(Guest(image=image, **fields))


def planned(guest: Guest) -> Run:
    made = Run(number=1, guest=guest, vls=TWO, where=HERE)
    return made.replace(command=command(made))


def test_output_is_the_guests_and_can_be_pickled() -> None:
    output = work.perform(run("exit7"))

    assert (output.code, output.stdout, output.stopped) == (7, b"guest at 128,256\n", False)
    assert pickle.loads(pickle.dumps(output)) == output


def test_packed_files_exist_during_the_run(tmp_path: Path) -> None:
    image = tmp_path / "cat"
    image.write_text("meow")
    packed = planned(Guest(image="cat").packed(image))
    image.unlink()

    output = work.perform(packed)

    assert output.stdout.endswith(b"meow\n")


def test_only_the_end_of_long_output_is_kept() -> None:
    output = work.perform(run("flood"))

    assert len(output.stdout) == work.TAKEN
    assert output.left_out == 3_000_001 + len("guest at 128,256\n") - work.TAKEN


@pytest.mark.parametrize("image", ["hang", "deaf"])
def test_stop_event_ends_a_run(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "GRACE_S", 0.2)
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()

    output = work.perform(run(image), stop)

    timer.join()
    assert output.stopped
    assert output.seconds < 300


def test_run_that_ends_by_itself_is_not_stopped() -> None:
    stop = threading.Event()

    output = work.perform(run("hello"), stop)
    stop.set()

    assert (output.code, output.stopped) == (0, False)


def test_run_that_hangs_beyond_its_timeout_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "HOST_S", 0.2)
    monkeypatch.setattr(work, "GRACE_S", 0.2)
    started = time.monotonic()

    output = work.perform(run("deaf", timeout_s=0.1))

    assert (output.code, output.stopped) == (124, False)
    assert b"pyvmm: the run did not end in time" in output.stderr
    assert time.monotonic() - started < 300


def test_host_is_asked_by_pyvmm_sve_list() -> None:
    assert work.ask(query(HERE)) == PROBE


def test_host_that_cannot_be_asked_raises_its_own_message() -> None:
    with pytest.raises(HostError, match="no such CPU") as caught:
        work.ask(query(HostSettings(cpu="none")))

    assert caught.value.hint == "take another"
    assert pickle.loads(pickle.dumps(caught.value)).hint == "take another"
