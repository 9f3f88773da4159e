"""The rows: the task of each for pyvmm and for the peer, and which result is the row's number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

INSIDE: Final = "/run/tmp/bench"  # the directory of the files, in the host's memory
PYVMM: Final = ("python3", "-c", "from pyvmm.__main__ import entry; entry()")
LIBRARY: Final = "/run/pyvmm/lib"
LOADER: Final = f"{INSIDE}/peer/lib/ld-linux-aarch64.so.1"
PEER_LIBRARIES: Final = ":".join(
    f"{INSIDE}/peer/{path}"
    for path in ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu",
                 "usr/lib/aarch64-linux-gnu/pulseaudio")
)  # fmt: skip
LKVM: Final = f"{INSIDE}/lkvm"  # there only if the user has given one
QUIET, LOG = "quiet", "loglevel=7"
SMP: Final = (1, 2, 4)
WORK: Final = 200_000_000  # instructions of the guest that checks the counter


class Cell(NamedTuple):
    """The place of a number: a task's name, and the key of a result."""

    task: str
    value: str = "spent"


class Unit(NamedTuple):
    """The unit of a row, where instructions are counted and where time is measured."""

    counted: str
    timed: str
    scale: float  # one of it, in the units of the results


THOUSAND: Final = Unit("thousand", "us", 1e3)
MILLION: Final = Unit("million", "ms", 1e6)
MEMORY: Final = Unit("MiB", "MiB", 1024)  # for results in KiB
TIMES: Final = Unit("", "", 1)
RATE: Final = Unit("MB/s", "MB/s", 1)
SECONDS: Final = Unit("s", "s", 1)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    title: str
    unit: Unit
    ours: Cell
    peer: Cell | None = None
    floor: Cell | None = None
    plain: Cell | None = None  # pyvmm with --no-fast-mmio
    lkvm: Cell | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The meaning of a word of the command line: tasks for inside.py, and rows."""

    tasks: list[dict[str, Any]]
    rows: list[Row]

    def tasks_of(self, *, lkvm: bool) -> list[dict[str, Any]]:
        """Return the tasks; those of lkvm only if there is one."""
        return [task for task in self.tasks if lkvm or task["argv"][0] != LKVM]


def pyvmm(image: str, *options: str) -> list[str]:
    """Return the command of a pyvmm run, started like its console script."""
    return [*PYVMM, "run", *options, f"{INSIDE}/{image}"]


def qemu(image: str, *options: str, serial: str = "stdio") -> list[str]:
    """Return the peer's command: the same machine, without extras."""
    return [
        LOADER, "--library-path", PEER_LIBRARIES, f"{INSIDE}/peer/usr/bin/qemu-system-aarch64",
        "-L", f"{INSIDE}/peer/usr/share/qemu", "-M", "virt,gic-version=3", "-accel", "kvm",
        "-cpu", "host", "-nodefaults", "-nic", "none", "-display", "none", "-monitor", "none",
        "-serial", serial, *options, "-kernel", f"{INSIDE}/{image}",
    ]  # fmt: skip


def lkvm(image: str, *options: str) -> list[str]:
    """Return the command of lkvm for the same machine. A word of the guest reaches stdout only."""
    return [LKVM, "run", "--network", "mode=none", "--irqchip", "gicv3", "--virtio-transport",
            "mmio", "--loglevel=warning", *options, "-k", f"{INSIDE}/{image}"]  # fmt: skip


def task(name: str, kind: str, argv: list[str], times: int = 1, **more: str) -> dict[str, Any]:
    """Make a task for inside.py."""
    # Nothing is searched for in the user's home: that would be a wait for 9p.
    home = INSIDE if argv[0] == LKVM else "/"  # lkvm makes a directory there
    environment = {"PYTHONPATH": LIBRARY, "PYTHONNOUSERSITE": "1", "HOME": home}
    return {"name": name, "kind": kind, "argv": argv, "times": times, "environment": environment,
            **more}  # fmt: skip


SMALL: Final = ("-c", "1", "-m", "64")
QEMU_SMALL: Final = ("-smp", "1", "-m", "64")


def linux_guest(vcpus: int, initrd: str, words: str, *more: str) -> tuple[str, ...]:
    """Return pyvmm's options for a Linux guest with 256 MiB."""
    return ("-c", str(vcpus), "-m", "256", "-i", f"{INSIDE}/{initrd}", "-p", words, *more)


def qemu_linux_guest(vcpus: int, initrd: str, words: str, *more: str) -> tuple[str, ...]:
    """Return QEMU's options for the same guest."""
    return ("-smp", str(vcpus), "-m", "256", "-initrd", f"{INSIDE}/{initrd}", "-append", words,
            *more)  # fmt: skip


def check() -> Part:
    """Check the counter by a guest's work of known length."""
    tasks = [
        task("work pyvmm", "work", pyvmm("work-pyvmm", *SMALL)),
        task("work qemu", "work", qemu("work-qemu", *QEMU_SMALL)),
    ]
    many = WORK // 1_000_000
    rows = [
        Row(f"{many} million instructions of a guest, {how}", MILLION,
            Cell("work pyvmm", name), Cell("work qemu", name))
        for name, how in (("spent", "as counted"), ("clock", "by the host's clock"))
    ]  # fmt: skip
    return Part(tasks, rows)


def exits() -> Part:
    """Measure single accesses of a guest."""
    floors = [task(f"floor {kind}", "number", [f"{INSIDE}/floor", kind])
              for kind in ("read", "write", "byte")]  # fmt: skip
    tasks = [
        task("exits pyvmm", "lines", pyvmm("exits-pyvmm", *SMALL)),
        task("exits plain", "lines", pyvmm("exits-pyvmm", "--no-fast-mmio", *SMALL)),
        task("exits free", "lines", pyvmm("exits-pyvmm", "--no-sandbox", *SMALL)),
        task("exits qemu", "lines", qemu("exits-qemu", *QEMU_SMALL)),
        task("exits lkvm", "lines_out", lkvm("exits-lkvm", *SMALL)),
        *floors,
    ]
    free = Row("MMIO read that no device claims, with --no-sandbox", THOUSAND,
               Cell("exits free", "unclaimed_read"), Cell("exits qemu", "unclaimed_read"),
               Cell("floor read"), lkvm=Cell("exits lkvm", "unclaimed_read"))  # fmt: skip
    return Part(tasks, [
        Row(title, THOUSAND, Cell("exits pyvmm", name),
            None if name == "byte_in_after_reset" else Cell("exits qemu", name),
            Cell(f"floor {floor}") if floor else None, Cell("exits plain", name),
            Cell("exits lkvm", name) if not name.startswith("byte_in") else None)
        for name, title, floor in (
            ("unclaimed_read", "MMIO read that no device claims", "read"),
            ("unclaimed_write", "MMIO write that no device claims", "write"),
            ("rtc_read", "real-time clock (PL031): read of the time", "read"),
            ("rtc_write", "the same: write of the interrupt mask it has", "write"),
            ("status_read", "UART status read", "read"),
            ("polled_byte", "UART byte out, polled", "byte"),
            ("byte_in", "UART byte in, polled", None),
            ("byte_in_after_reset", "UART byte in, polled, after a reset of the FIFO", None),
            ("hvc", "HVC answered in the kernel", None),
        )
    ] + [free])  # fmt: skip


def start() -> Part:
    """Measure from a process's start to its guest's first store."""
    tasks = [
        task("first image pyvmm", "first", pyvmm("first-linux", *SMALL), 3),
        task("first image pyvmm free", "first", pyvmm("first-linux", *SMALL, "--no-sandbox"), 3),
        task("first elf pyvmm", "first", pyvmm("first-pyvmm", *SMALL), 3),
        task("first elf qemu", "first", qemu("first-qemu", *QEMU_SMALL), 3),
        task("first image lkvm", "first", lkvm("first-linux", *SMALL), 3),
        task("first floor", "first", [f"{INSIDE}/floor", "first"], 3),
    ]
    peer, floor, lkvms = Cell("first elf qemu"), Cell("first floor"), Cell("first image lkvm")
    rows = [
        Row("process start to a Linux Image's first store", MILLION, Cell("first image pyvmm"),
            peer, floor, lkvm=lkvms),
        Row("the same with --no-sandbox", MILLION, Cell("first image pyvmm free"), peer, floor,
            lkvm=lkvms),
        Row("process start to an ELF's first store", MILLION, Cell("first elf pyvmm"), peer, floor),
        Row("RSS with a tiny guest", MEMORY, Cell("first image pyvmm", "rss_kib"),
            Cell("first elf qemu", "rss_kib"), lkvm=lkvms._replace(value="rss_kib")),
    ]  # fmt: skip
    return Part(tasks, rows)


def linux() -> Part:
    """Measure boots of Linux with one vCPU."""
    part = boots((1,))
    tasks = [
        task("typed pyvmm", "typed", pyvmm("Image", *linux_guest(1, "typed-initrd", QUIET))),
        task("typed qemu", "typed",
             qemu("Image", *qemu_linux_guest(1, "typed-initrd", f"console=ttyAMA0 {QUIET}"))),
    ]  # fmt: skip
    row = Row("exec to a line of early input in Linux's init, quiet", MILLION,
              Cell("typed pyvmm"), Cell("typed qemu"))  # fmt: skip
    return Part([*part.tasks, *tasks], [*part.rows, row])


def smp() -> Part:
    """Measure boots of Linux with one vCPU and with several."""
    return boots(SMP)


def smp_more() -> Part:
    """Measure boots of Linux with several vCPUs."""
    return boots(SMP[1:])


def boots(counts: tuple[int, ...]) -> Part:
    """Measure boots of a Linux guest with 256 MiB to its init, for each number of vCPUs."""
    tasks, rows = [], []
    for vcpus in counts:
        for name, words in (("quiet", QUIET), ("log", LOG)):
            ours = linux_guest(vcpus, "initrd", words)
            theirs = qemu_linux_guest(vcpus, "initrd", f"console=ttyAMA0 {words}")
            tasks += [
                task(f"linux {name} {vcpus} pyvmm", "linux", pyvmm("Image", *ours)),
                task(f"linux {name} {vcpus} qemu", "linux", qemu("Image", *theirs)),
                task(f"linux {name} {vcpus} lkvm", "linux", lkvm("Image", *ours)),
            ]
        plain = pyvmm("Image", "--no-fast-mmio", *linux_guest(vcpus, "initrd", LOG))
        tasks.append(task(f"linux log {vcpus} plain", "linux", plain))
        rows += _boot_rows(vcpus)
    return Part(tasks, rows)


def _boot_rows(vcpus: int) -> list[Row]:
    def row(title: str, unit: Unit, boot: str, value: str = "spent") -> Row:
        ours, peer, plain, lkvms = (
            Cell(f"linux {boot} {vcpus} {who}", value) for who in ("pyvmm", "qemu", "plain", "lkvm")
        )
        many = f"{vcpus} vCPU{'s' if vcpus > 1 else ''}"
        return Row(
            f"{title}, {many}", unit, ours, peer, None, plain if boot == "log" else None, lkvms
        )

    return [
        row("exec to Linux's init, quiet", MILLION, "quiet"),
        row("exec to Linux's init, the full log on the UART", MILLION, "log"),
        row("64-byte line from a Linux program to the UART", THOUSAND, "log", "line"),
        row("exits to the VMM until init, quiet", TIMES, "quiet", "mmio_exit_user"),
        row("exits to the VMM until init, full log", TIMES, "log", "mmio_exit_user"),
        row("exits of the vCPUs in all until init, quiet", TIMES, "quiet", "exits"),
        row("exits of the vCPUs in all until init, full log", TIMES, "log", "exits"),
        row("RSS at Linux's init", MEMORY, "quiet", "rss_kib"),
    ]


def disk() -> Part:
    """Measure a Linux guest's reads and writes of a file in the host's memory."""
    place = f"{INSIDE}/disk"
    theirs = ("-drive", f"if=none,id=d,format=raw,file={place}",
              "-device", "virtio-blk-device,drive=d")  # fmt: skip
    ours = linux_guest(1, "block-initrd", QUIET, "-d", place)
    peer = qemu_linux_guest(1, "block-initrd", f"console=ttyAMA0 {QUIET}", *theirs)
    tasks = [
        task("disk pyvmm", "disk", pyvmm("Image", *ours), disk=place),
        task("disk qemu", "disk", qemu("Image", *peer), disk=place),
        task("disk lkvm", "disk", lkvm("Image", *ours), disk=place),
    ]
    return Part(tasks, [
        Row(title, THOUSAND, Cell("disk pyvmm", name), Cell("disk qemu", name),
            lkvm=Cell("disk lkvm", name))
        for name, title in (
            ("random_read", "4 KiB read of a disk"),
            ("random_write", "4 KiB write of a disk"),
            ("concurrent_read", "4 KiB read of a disk, 16 in flight"),
            ("concurrent_write", "4 KiB write of a disk, 16 in flight"),
            ("sequential_read", "1 MiB read of a disk"),
            ("sequential_write", "1 MiB write of a disk"),
            ("write_and_flush", "4 KiB write of a disk, and a flush"),
        )
    ])  # fmt: skip


def console() -> Part:
    """Measure a Linux guest's virtio console."""
    theirs = ("-device", "virtio-serial-device", "-chardev", "stdio,id=c,signal=off",
              "-device", "virtconsole,chardev=c")  # fmt: skip
    ours = linux_guest(1, "console-initrd", QUIET, "--console", "virtio")
    peer = qemu_linux_guest(1, "console-initrd", QUIET, *theirs)
    tasks = [
        task("console pyvmm", "console", pyvmm("Image", *ours), 3),
        task("console qemu", "console", qemu("Image", *peer, serial="none"), 3),
        task("console lkvm", "console_out", lkvm("Image", *ours), 3),
    ]
    return Part(tasks, [
        Row(title, unit, Cell("console pyvmm", name), Cell("console qemu", name),
            lkvm=Cell("console lkvm", name) if name.startswith("out") else None)
        for name, title, unit in (
            ("out", "KiB out by the virtio console", THOUSAND),
            ("in", "KiB in by the virtio console", THOUSAND),
            ("out_rate", "bytes per second out by the virtio console (more is better)", RATE),
            ("in_rate", "bytes per second in by the virtio console (more is better)", RATE),
        )
    ])  # fmt: skip


def entropy() -> Part:
    """Measure a Linux guest's reads of its entropy device."""
    theirs = ("-object", "rng-random,id=r,filename=/dev/urandom",
              "-device", "virtio-rng-device,rng=r")  # fmt: skip
    ours = linux_guest(1, "entropy-initrd", QUIET, "--rng")
    peer = qemu_linux_guest(1, "entropy-initrd", f"console=ttyAMA0 {QUIET}", *theirs)
    tasks = [
        task("entropy pyvmm", "requests", pyvmm("Image", *ours)),
        task("entropy qemu", "requests", qemu("Image", *peer)),
    ]
    return Part(tasks, [
        Row("64 bytes from the entropy device", THOUSAND, Cell("entropy pyvmm", "entropy"),
            Cell("entropy qemu", "entropy")),
    ])  # fmt: skip


# The part that each word of the command line measures: with counted instructions, in real time
COUNTED: Final[Mapping[str, Callable[[], Part]]] = {
    "exits": exits, "start": start, "linux": linux, "smp": smp_more, "disk": disk,
    "console": console, "entropy": entropy,
}  # fmt: skip
TIMED: Final[Mapping[str, Callable[[], Part]]] = {"smp": smp, "console": console}
