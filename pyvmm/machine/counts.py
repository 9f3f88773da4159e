"""How often each vCPU left KVM_RUN, why, and which device it left for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pyvmm.kvm.exits import reason_name
from pyvmm.kvm.stats import Stats
from pyvmm.kvm.vcpu import Vcpu


class ExitCounts:
    """One vCPU's exits to pyvmm, counted by its own thread and read by any.

    ``reads`` and ``writes`` are the MMIO exits by device; ``others`` the rest by reason.
    """

    __slots__ = ("others", "reads", "writes")

    def __init__(self) -> None:
        self.reads: defaultdict[str, int] = defaultdict(int)
        self.writes: defaultdict[str, int] = defaultdict(int)
        self.others: defaultdict[int, int] = defaultdict(int)

    def by_cause(self) -> dict[str, int]:
        """The counts by what caused the exits, as "uart0 read" or "SYSTEM_EVENT"."""
        causes = {f"{device} read": count for device, count in self.reads.copy().items()}
        causes |= {f"{device} write": count for device, count in self.writes.copy().items()}
        causes |= {reason_name(reason): count for reason, count in self.others.copy().items()}
        return dict(sorted(causes.items()))


class KernelCounts:
    """KVM's own counts of the vCPUs, where this kernel offers them (Linux 5.14).

    Its files are opened ahead: a vCPU that runs would keep KVM_GET_STATS_FD waiting.
    """

    def __init__(self, vcpus: Sequence[Vcpu], offered: bool) -> None:
        self._files: list[Stats] = []
        try:
            for vcpu in vcpus if offered else ():
                self._files.append(Stats(vcpu.get_stats_fd()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files; idempotent."""
        for file in self._files:
            file.close()

    def read(self) -> list[dict[str, int]]:
        """The counts of each vCPU; nothing where the kernel offers none."""
        return [file.read() for file in self._files]


def totals(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Several counts, as those of all vCPUs, together."""
    added: defaultdict[str, int] = defaultdict(int)
    for one in counts:
        for name, count in one.items():
            added[name] += count
    return dict(sorted(added.items()))
