"""Counts of each vCPU's exits from KVM_RUN, by reason and device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from pyvmm.kvm.exits import reason_name
from pyvmm.kvm.stats import Stats
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.fastpath import FastPaths


class ExitCounts:
    """One vCPU's exits to pyvmm, counted by its own thread and readable from any thread.

    ``reads`` and ``writes`` are the MMIO exits by device, ``others`` the rest by reason.
    """

    __slots__ = ("others", "reads", "writes")

    def __init__(self) -> None:
        self.reads: defaultdict[str, int] = defaultdict(int)
        self.writes: defaultdict[str, int] = defaultdict(int)
        self.others: defaultdict[int, int] = defaultdict(int)

    def by_cause(self) -> dict[str, int]:
        """Return the counts by the exits' cause: "uart0 read", "SYSTEM_EVENT"."""
        causes = {f"{device} read": count for device, count in self.reads.copy().items()}
        causes |= {f"{device} write": count for device, count in self.writes.copy().items()}
        causes |= {reason_name(reason): count for reason, count in self.others.copy().items()}
        return dict(sorted(causes.items()))


class KernelCounts:
    """KVM's own counts of the vCPUs, if this kernel offers them (Linux 5.14).

    The files are opened before the vCPUs run: KVM_GET_STATS_FD waits for a running vCPU.
    """

    def __init__(self, vcpus: Sequence[Vcpu], offered: bool) -> None:
        with ExitStack() as undo:
            self._files: list[Stats] = []
            for vcpu in vcpus if offered else ():
                self._files.append(Stats(vcpu.get_stats_fd()))
                undo.callback(self._files[-1].close)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close the files; idempotent."""
        self._undo.close()

    def read(self) -> list[dict[str, int]]:
        """Return the counts of each vCPU; none if the kernel offers none."""
        return [file.read() for file in self._files]


class Counts:
    """The counters of a machine, readable at any time."""

    def __init__(
        self, exits: Sequence[ExitCounts], kernel: KernelCounts, fast: FastPaths | None
    ) -> None:
        self._exits = exits
        self._kernel = kernel
        self._fast = fast

    def exits(self) -> list[dict[str, int]]:
        """Return how often each vCPU left KVM_RUN, by cause ("uart0 read")."""
        counts = [vcpu.by_cause() for vcpu in self._exits]
        if self._fast is None:
            return counts
        return [totals(pair) for pair in zip(counts, self._fast.completed(), strict=True)]

    def bytes_without_exit(self) -> dict[str, int]:
        """Return how many bytes each UART sent without an exit to Python."""
        return {} if self._fast is None else self._fast.bytes_sent()

    def kernel(self) -> list[dict[str, int]]:
        """Return KVM's own statistics of each vCPU, by KVM's names; none before Linux 5.14."""
        return self._kernel.read()


def totals(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sums of several counts, by name."""
    added: defaultdict[str, int] = defaultdict(int)
    for one in counts:
        for name, count in one.items():
            added[name] += count
    return dict(sorted(added.items()))
