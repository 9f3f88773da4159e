"""The hunt on this machine's KVM, with controls."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm.repro import observe, worker, zcrhunt
from pyvmm.repro.model import Case, Evidence, Finding
from pyvmm.repro.vmm import GuestProcess
from pyvmm.repro.watcher import Watcher
from pyvmm.repro.zcrverdict import judge
from tests.repro.rows import settings

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def same_cpus_afterwards() -> Any:
    """Restore the CPU affinity, which a hunt changes."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def hunt(**changed: Any) -> tuple[Finding, Evidence]:
    """Run a short hunt."""
    wishes = settings(zcr=[0, 2, 15], **changed)
    found = worker.do(Case(reproduction="zcr-el12", settings=wishes, files={}))
    return judge(wishes, found), found


def test_hunt_on_a_correct_host_is_not_reproduced_and_catches_every_control() -> None:
    finding, found = hunt()

    assert (finding.verdict, finding.code) == ("NOT REPRODUCED", 0), finding
    controls = [row for row in found["rows"] if row["phase"] == "control"]
    assert [row["control"] for row in controls] == ["vl", "zero", "flip", "pred"]
    assert all(row["caught"] == row["damaged"] > 0 for row in controls)
    kinds = [(row["truncated"], row["zeroed"], row["foreign"], row["p"]) for row in controls]
    assert [tuple(map(bool, kind)) for kind in kinds] == [
        (True, False, False, True),
        (False, True, False, False),
        (False, False, True, False),
        (False, False, False, True),
    ]


def test_guest_had_its_lengths_and_cpu_time_during_the_hunt() -> None:
    _, found = hunt(control=["flip"], guest_max_vl=256)

    sweep = [row for row in found["rows"] if row["phase"] == "sweep"]
    assert [row["zcr"] for row in sweep] == [0, 2, 15, 15, 2, 0]
    assert {row["len"]: row["guest_vl"] for row in sweep} == {0: 16, 2: 32, 15: 32}
    assert all(row["interrupted"] for row in sweep)
    assert found["exits"] > 0


def test_arm_step_changes_nothing_on_a_correct_host() -> None:
    finding, found = hunt(arm="always", control=["zero"])

    assert finding.verdict == "NOT REPRODUCED", finding
    assert found["armed"]


def test_cpu_that_is_not_online_is_inconclusive() -> None:
    finding, _ = hunt(cpu=4000)

    assert (finding.verdict, finding.code) == ("INCONCLUSIVE", 3)
    assert "CPU 4000 is not online" in finding.why[0]


def test_hunt_reports_a_killed_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Watcher] = []

    class Doomed(Watcher):
        def hold(self, microseconds: int, count: int, damage: str = "") -> Any:
            if started:
                return super().hold(microseconds, count, damage)
            started.append(self)
            timer = threading.Timer(0.3, os.kill, (self._process.pid, signal.SIGKILL))
            timer.start()
            try:
                return super().hold(500_000, 20, damage)
            finally:
                timer.join()

    monkeypatch.setattr(zcrhunt, "Watcher", Doomed)

    finding, _ = hunt()

    assert (finding.verdict, finding.code) == ("KILLED BY KERNEL", 3)
    assert "SIGKILL" in finding.why[0]


def test_hunt_reports_a_killed_guest_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doomed(GuestProcess):
        def ask(self, letter: str) -> tuple[str, int]:
            if letter == "C":  # LEN becomes 2
                os.kill(self.pid, signal.SIGKILL)
            return super().ask(letter)

    monkeypatch.setattr(zcrhunt, "GuestProcess", Doomed)

    finding, found = hunt()

    assert (finding.verdict, finding.code) == ("KILLED BY KERNEL", 3)
    assert finding.why[0] == "the guest's process died: SIGKILL"
    assert found["children"]["guest"] == signal.SIGKILL
    assert [row["len"] for row in found["rows"]] == [None, 15, 0]


def test_hunt_with_a_missing_guest_is_inconclusive(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(b"\x7fELF and nothing more")
    wishes = settings()

    files = {"guest": str(tmp_path / "guest")}
    found = worker.do(Case(reproduction="zcr-el12", settings=wishes, files=files))

    assert judge(wishes, found).verdict == "INCONCLUSIVE"
    assert "guest" in judge(wishes, found).why[0]


def test_hunt_leaves_no_process() -> None:
    hunt(control=["flip"])

    deadline = time.monotonic() + 120
    while any("sve-watcher" in line for line in command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return lines


def test_test_host_runs_in_vhe() -> None:
    assert observe.runs_in_vhe() is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13: 1 2 GICv3 27 Level kvm guest vtimer\n", False),
        (
            "13: 1 2 GICv3 27 Level kvm guest vtimer\n11: 0 0 GICv3 30 Level kvm guest ptimer\n",
            True,
        ),
        ("13: 1 2 GICv3 27 Level arch_timer\n", None),
    ],
)
def test_vhe_is_detected_by_the_physical_timer(
    text: str, expected: bool | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "interrupts").write_text(text)
    monkeypatch.setattr(observe, "INTERRUPTS", tmp_path / "interrupts")

    assert observe.runs_in_vhe() is expected
