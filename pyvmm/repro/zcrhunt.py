"""The test whether a guest's ZCR_EL1 affects the host: a guest and a watcher share one CPU.

The guest sets ZCR_EL1.LEN.  The watcher, a process that does not use KVM, holds patterns at the
host's full vector length on the same CPU.  The results are rows.  See docs/zcr-el12.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from pyvmm.config import Config, SveRequest
from pyvmm.errors import VmmError
from pyvmm.repro.model import Case, Evidence
from pyvmm.repro.observe import KernelLog, cpus, kernel, loaded, runs_in_vhe
from pyvmm.repro.programs import ChildEnded
from pyvmm.repro.vmm import GuestProcess
from pyvmm.repro.watcher import Tally, Watcher, added

LEN_MAX: Final = 15
MODULE: Final = "zcr_el12"
HOLDS: Final = 2  # holds at a time, until a row has enough
TRIES: Final = 20
TOGGLE_HOLDS: Final = 10
CONTROL_HOLDS: Final = 6
LOOPS: Final = 200  # RDVL loops that a row needs: with fewer the watcher was starved
# The module's counters; see its source
PARAMETERS: Final = ("hits", "last_zcr_el12", "last_zcr_el2", "last_hcr_el2", "last_cptr_el2")


class Trouble(VmmError):
    """The reason why the test ended early; ``kind`` decides the verdict."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def hunt(case: Case) -> Evidence:
    """Run a guest and a watcher on one CPU, and record the watcher's vector lengths."""
    began = time.monotonic()
    found: Evidence = {"kernel": kernel(), "rows": [], "children": {}, "armed": False}
    log = KernelLog()
    try:
        _Hunt(case, found).run()
    except Trouble as trouble:
        found["trouble"] = {"kind": trouble.kind, "text": trouble.message}
    except VmmError as error:
        hint = f" ({error.hint})" if error.hint else ""
        found["trouble"] = {"kind": "inconclusive", "text": f"{error.message}{hint}"}
    finally:
        found["warnings"] = log.alarming()
        log.close()
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


class _Hunt:
    """One test; it adds evidence to ``found`` at each step, so that an error loses nothing."""

    def __init__(self, case: Case, found: Evidence) -> None:
        self._case = case
        self._found = found
        self._settings = case.settings
        self._hold_us = 1000 * int(case.settings["hold_ms"])
        self._cpu = self._choose_cpu()
        self._watcher: Watcher
        self._guest: GuestProcess | None = None

    def run(self) -> None:
        """Run all steps.  Raises: Trouble."""
        self._check_host()
        with ExitStack() as stack:
            self._watcher = stack.enter_context(self._start_watcher())
            self._found |= {"lengths": sorted(self._watcher.lengths), "vl": self._watcher.vl}
            if len(self._watcher.lengths) < 2:
                raise Trouble("unsupported", "the host has only one vector length")
            if self._settings["arm"] == "always":
                self._arm()
            self._row("before")
            self._guest = stack.enter_context(self._start_guest())
            if self._prime():
                with self._hack():
                    self._sweep()
                    self._send("t")
                    self._row("toggle", holds=TOGGLE_HOLDS)
                self._controls()
            self._guest.close()
            self._found["children"]["guest"] = self._guest.wait()

    def _choose_cpu(self) -> int:
        online = cpus()
        cpu = self._settings["cpu"]
        chosen = max(online) if cpu is None else int(cpu)
        self._found |= {"cpus": sorted(online), "cpu": chosen}
        if chosen not in online:
            shown = ",".join(map(str, sorted(online)))
            raise Trouble("inconclusive", f"CPU {chosen} is not online or not allowed: use {shown}")
        # Our other threads use the other CPUs, if there are any.
        if elsewhere := online - {chosen}:
            os.sched_setaffinity(0, elsewhere)
        self._elsewhere = elsewhere
        return chosen

    def _check_host(self) -> None:
        vhe = self._found["vhe"] = runs_in_vhe()
        if vhe is None:
            raise Trouble("unsupported", "the host's kernel has no KVM")
        if not vhe:
            raise Trouble(
                "unsupported",
                "the host's kernel runs at EL1 (nVHE): it has its own ZCR_EL1 and no ZCR_EL12, "
                "and KVM saves and restores ZCR_EL1",
            )

    def _start_watcher(self) -> Watcher:
        try:
            return Watcher(self._case.path("watcher"), self._cpu, self._case.seed)
        except ChildEnded as error:
            if "cannot run here: sve" in error.message:
                raise Trouble("unsupported", "the host's programs have no SVE") from None
            raise self._ended("watcher", error) from None

    def _start_guest(self) -> GuestProcess:
        config = Config(
            image=self._case.path("guest"),
            vcpus=1,
            sve=SveRequest(required=True, max_vl=self._settings["guest_max_vl"]),
            vcpu_affinity=frozenset({self._cpu}),
            name=f"repro-{os.getpid()}",
        )
        try:
            return GuestProcess(config, frozenset(self._elsewhere))
        except ChildEnded as error:
            raise self._ended("guest", error) from None

    def _arm(self) -> None:
        self._watcher.arm()
        self._found["armed"] = True

    def _prime(self) -> bool:
        """Let the guest allow every length, and return whether the host's length is then right."""
        row = self._row("primed", LEN_MAX)
        if self._is_whole(row):
            return True
        if self._settings["arm"] == "auto":
            self._arm()
            row = self._row("armed", LEN_MAX)
        return self._is_whole(row)

    def _is_whole(self, row: Tally) -> bool:
        vl = self._watcher.vl
        return not row["bad"] and row["vl_min"] == row["vl_max"] == row["prctl"] == vl

    @contextmanager
    def _hack(self) -> Iterator[None]:
        """Write N to ZCR_EL12 each time KVM has saved a vCPU's registers, during the block."""
        value = self._settings["hack"]
        if value is None:
            yield
            return
        with self._module(mode=0, value=value) as parameters:
            yield
            self._found["module"] = _read(parameters)

    def _module(self, **parameters: int) -> Any:
        if self._case.module is None:
            raise Trouble("inconclusive", "there is no kernel module for this host")
        return loaded(Path(self._case.module), MODULE, cpu=self._cpu, **parameters)

    def _sweep(self) -> None:
        lens = self._settings["zcr"]
        for number in range(self._settings["rounds"]):
            for length in (*lens, *reversed(lens)):
                self._row("sweep", length, round=number)

    def _controls(self) -> None:
        for kind in self._settings["control"]:
            if kind == "module":
                with self._module(mode=1, value=0) as parameters:
                    self._row("control", 0, control=kind, holds=CONTROL_HOLDS)
                    self._found["control_module"] = _read(parameters)
            else:
                self._row("control", LEN_MAX, control=kind, holds=CONTROL_HOLDS)

    def _row(
        self, phase: str, length: int | None = None, *, holds: int = HOLDS, **more: Any
    ) -> Tally:
        """Set ZCR_EL1.LEN, and add a row with the watcher's counts."""
        row: dict[str, Any] = {"phase": phase, "len": length, **more}
        if length is not None:
            words = self._send(chr(ord("A") + length)).split()
            row |= {"zcr": int(words[3]), "guest_vl": int(words[5])}
        damage = more.get("control", "")
        tally = self._hold(holds, "" if damage == "module" else damage)
        self._found["rows"].append({**row, **tally})
        return tally

    def _hold(self, holds: int, damage: str) -> Tally:
        """Hold until the counts are conclusive: guest and watcher both had the CPU."""
        try:
            total = self._watcher.hold(self._hold_us, holds, damage)
            for _ in range(TRIES):
                shared = total["interrupted"] or self._guest is None
                enough = not damage or total["damaged"] >= holds // 2
                if shared and enough and total["loops"] >= LOOPS:
                    break
                total = added(total, self._watcher.hold(self._hold_us, HOLDS, damage))
        except ChildEnded as error:
            raise self._ended("watcher", error) from None
        if total["moved"]:
            raise Trouble("inconclusive", f"the kernel moved the watcher away from CPU {self._cpu}")
        if total["arm_failed"]:
            raise Trouble("inconclusive", f"arm: ptrace: {os.strerror(total['arm_failed'])}")
        return total

    def _send(self, letter: str) -> str:
        """Send a letter to the guest, and return its answer."""
        assert self._guest is not None, "the guest was not started"
        try:
            answer, self._found["exits"] = self._guest.ask(letter)
        except ChildEnded as error:
            raise self._ended("guest", error) from None
        return answer

    def _ended(self, child: str, error: ChildEnded) -> Trouble:
        self._found["children"][child] = error.signal
        return Trouble("killed" if error.signal else "inconclusive", error.message)


def _read(parameters: Path) -> dict[str, int]:
    """Read the module's counters."""
    return {name: int((parameters / name).read_text(), 0) for name in PARAMETERS}
