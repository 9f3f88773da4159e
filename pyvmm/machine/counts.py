"""Counts of each vCPU's exits from KVM_RUN, by reason and device."""

from __future__ import annotations

from collections import Counter, defaultdict
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


def open_stats(vcpus: Iterable[Vcpu], undo: ExitStack) -> list[Stats]:
    """Open the files with KVM's own counts, before the vCPUs run; ``undo`` gets the cleanup.

    KVM_GET_STATS_FD waits for a running vCPU.
    """
    return [undo.enter_context(Stats(vcpu.get_stats_fd())) for vcpu in vcpus]


class Counts:
    """The counters of a machine, readable at any time."""

    def __init__(
        self, exits: Sequence[ExitCounts], kernel: Sequence[Stats], fast: FastPaths | None
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
        return [stats.read() for stats in self._kernel]


def totals(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the sums of several counts, by name."""
    added: Counter[str] = Counter()
    for one in counts:
        added.update(one)
    return dict(sorted(added.items()))
