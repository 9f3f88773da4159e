"""A trace of each vCPU's exits, in Perfetto's format.

    with ExitTrace(Path("run.pftrace"), "guest-1") as trace, Machine(config, trace=trace) as vm:
        vm.run()

Each vCPU is a track with a slice for every exit that Python handled, named as `pyvmm stat` names
it, with address, length and data. Counters show the exits that C completed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvmm.base.closing import Closing
from pyvmm.base.files import Replacement, cannot_write, write_all
from pyvmm.errors import VmmError
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.report import perfetto

FLUSH: Final = 256 << 10  # bytes of a vCPU's packets before they are written
PROCESS_TRACK: Final = 1
FIRST_TRACK: Final = 0x100  # of the vCPUs
FIRST_COUNTER: Final = 0x1_0000


def now_ns() -> int:
    """Read Perfetto's clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class ExitTrace(Closing):
    """A trace; a context manager that creates the file at its end.

    Raises: UsageError or HostError, if the file cannot be written; an old file then stays.
    """

    def __init__(
        self, path: Path, name: str, make: Callable[[Path], Replacement] = Replacement
    ) -> None:
        self._file = make(path)
        self._failure: VmmError | None = None  # of the first write that failed
        self._offset = 0
        self._lock = threading.Lock()  # of the file
        self._vcpus: dict[int, perfetto.Sequence] = {}
        self._counters: dict[int, dict[str, int]] = {}  # of each vCPU: name -> last value
        process = perfetto.message(
            (perfetto.PID, os.getpid()), (perfetto.PROCESS_NAME, f"pyvmm {name}")
        )
        descriptor = perfetto.message((perfetto.UUID, PROCESS_TRACK), (perfetto.PROCESS, process))
        try:
            self._write(perfetto.packet((perfetto.SEQUENCE, 1), (perfetto.DESCRIPTOR, descriptor)))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Write the rest and rename the file; while no vCPU runs. Idempotent."""
        sequences, self._vcpus = self._vcpus, {}
        with self._file as file:
            if file.fd >= 0:
                for sequence in sequences.values():
                    self._write(sequence.take())
                file.commit()

    def exit(self, vcpu: int, cause: str, leave: Exit, began_ns: int) -> None:
        """Record an exit that was handled; call it in the vCPU's thread."""
        facts = {}
        if leave.reason == ExitReason.MMIO:
            facts = {"address": leave.address, "length": leave.length}
            if leave.is_write:
                facts["data"] = leave.data
        sequence = self._sequence(vcpu)
        sequence.slice(cause, began_ns, now_ns(), facts)
        if sequence.size > FLUSH:
            self._write(sequence.take())

    def completed(self, vcpu: int, counts: dict[str, int]) -> None:
        """Record the exits that C has completed until now, by cause; in the vCPU's thread."""
        known, sequence = self._counters.setdefault(vcpu, {}), self._sequence(vcpu)
        for cause, count in counts.items():
            if known.get(cause) != count:
                track = FIRST_COUNTER * (1 + vcpu) + list({**known, cause: 0}).index(cause)
                if cause not in known:
                    sequence.counter(track, FIRST_TRACK + vcpu, f"{cause}, without Python")
                sequence.count(track, now_ns(), count)
                known[cause] = count

    def _sequence(self, vcpu: int) -> perfetto.Sequence:
        """Return a vCPU's track, and create it at the first exit; call it in the vCPU's thread."""
        if vcpu not in self._vcpus:
            thread = perfetto.message(
                (perfetto.THREAD_PID, os.getpid()),
                (perfetto.TID, threading.get_native_id()),
                (perfetto.THREAD_NAME, f"vCPU {vcpu}"),
            )
            self._vcpus[vcpu] = perfetto.Sequence(
                2 + vcpu,
                FIRST_TRACK + vcpu,
                [(perfetto.PARENT, PROCESS_TRACK), (perfetto.THREAD, thread)],
            )
        return self._vcpus[vcpu]

    def _write(self, packets: bytes) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                write_all(self._file.fd, packets, self._offset)
            except OSError as error:
                self._failure = cannot_write(self._file.path, error)
                raise self._failure from error
            self._offset += len(packets)
