"""The rows: what is run for each, what the peer runs, and which number of it is the row's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

INSIDE: Final = "/run/tmp/bench"  # where the files are, in the host's memory
PYVMM: Final = ("python3", "-c", "import sys; from pyvmm.entry import main; sys.exit(main())")
LIBRARY: Final = "/run/pyvmm/lib"
LOADER: Final = f"{INSIDE}/peer/lib/ld-linux-aarch64.so.1"
PEER_LIBRARIES: Final = ":".join(
    f"{INSIDE}/peer/{path}"
    for path in ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu",
                 "usr/lib/aarch64-linux-gnu/pulseaudio")
)  # fmt: skip
QUIET, LOG = "quiet", "loglevel=7"


def pyvmm(image: str, *options: str) -> list[str]:
    """A run of pyvmm's, as its console script would begin it."""
    return [*PYVMM, "run", *options, f"{INSIDE}/{image}"]


def qemu(image: str, *options: str) -> list[str]:
    """The peer's: the same machine, as plain as it gets."""
    return [
        LOADER, "--library-path", PEER_LIBRARIES, f"{INSIDE}/peer/usr/bin/qemu-system-aarch64",
        "-L", f"{INSIDE}/peer/usr/share/qemu", "-M", "virt,gic-version=3", "-accel", "kvm",
        "-cpu", "host", "-nodefaults", "-nic", "none", "-display", "none", "-monitor", "none",
        "-serial", "stdio", *options, "-kernel", f"{INSIDE}/{image}",
    ]  # fmt: skip


def task(name: str, kind: str, argv: list[str], times: int = 1) -> dict[str, Any]:
    """One piece of work for inside.py."""
    # Nothing of the user's home is looked for: waiting for outside is no instructions of pyvmm's.
    environment = {"PYTHONPATH": LIBRARY, "PYTHONNOUSERSITE": "1", "HOME": "/"}
    return {"name": name, "kind": kind, "argv": argv, "times": times, "environment": environment}


SMALL: Final = ("-c", "1", "-m", "64")
QEMU_SMALL: Final = ("-smp", "1", "-m", "64")


def linux_tasks(vcpus: int) -> list[dict[str, Any]]:
    """Boots of a Linux guest with 256 MiB to its init."""
    found = []
    for name, words in (("quiet", QUIET), ("log", LOG)):
        ours = ("-c", str(vcpus), "-m", "256", "-i", f"{INSIDE}/initrd", "-p", words)
        theirs = ("-smp", str(vcpus), "-m", "256", "-initrd", f"{INSIDE}/initrd",
                  "-append", f"console=ttyAMA0 {words}")  # fmt: skip
        found.append(task(f"linux {name} {vcpus} pyvmm", "linux", pyvmm("Image", *ours)))
        found.append(task(f"linux {name} {vcpus} qemu", "linux", qemu("Image", *theirs)))
    plain = ("--no-fast-mmio", "-c", str(vcpus), "-m", "256", "-i", f"{INSIDE}/initrd", "-p", LOG)
    found.append(task(f"linux log {vcpus} plain", "linux", pyvmm("Image", *plain)))
    return found


def exit_tasks() -> list[dict[str, Any]]:
    """What single accesses cost."""
    return [
        task("exits pyvmm", "lines", pyvmm("exits-pyvmm", *SMALL)),
        task("exits plain", "lines", pyvmm("exits-pyvmm", "--no-fast-mmio", *SMALL)),
        task("exits qemu", "lines", qemu("exits-qemu", *QEMU_SMALL)),
        task("floor", "number", [f"{INSIDE}/floor"]),
    ]


def start_tasks() -> list[dict[str, Any]]:
    """From a process's start to its guest's first store."""
    return [
        task("first image pyvmm", "first", pyvmm("first-linux", *SMALL), 3),
        task("first elf pyvmm", "first", pyvmm("first-pyvmm", *SMALL), 3),
        task("first elf qemu", "first", qemu("first-qemu", *QEMU_SMALL), 3),
    ]


def disk_tasks() -> list[dict[str, Any]]:
    """Reads and writes of a Linux guest's, of a file in the host's memory."""
    initrd, disk = f"{INSIDE}/block-initrd", f"{INSIDE}/disk"
    ours = ("-c", "1", "-m", "256", "-i", initrd, "-p", QUIET, "-d", disk)
    theirs = ("-smp", "1", "-m", "256", "-initrd", initrd, "-append", f"console=ttyAMA0 {QUIET}",
              "-drive", f"if=none,id=d,format=raw,file={disk}",
              "-device", "virtio-blk-device,drive=d")  # fmt: skip
    return [
        task("disk pyvmm", "disk", pyvmm("Image", *ours)) | {"disk": disk},
        task("disk qemu", "disk", qemu("Image", *theirs)) | {"disk": disk},
    ]


class Cell(NamedTuple):
    """Where a number is: a task's name, and which of its results."""

    task: str
    value: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report; ``scale`` is what one of its unit is in the results' units."""

    title: str
    unit: str
    scale: float
    ours: Cell
    peer: Cell | None = None
    floor: Cell | None = None
    plain: Cell | None = None  # pyvmm with --no-fast-mmio


MEMORY: Final = ("MiB", 1024.0)


def access_rows(unit: str, scale: float) -> list[Row]:
    """Single accesses of a guest's."""
    floor = Cell("floor", "ns")
    titles = {
        "unclaimed_read": "MMIO read that no device claims",
        "unclaimed_write": "MMIO write that no device claims",
        "rtc_read": "MMIO read answered by a device (PL031)",
        "rtc_write": "MMIO write taken by a device (PL031)",
        "status_read": "UART status read",
        "polled_byte": "UART byte out, polled",
        "hvc": "HVC answered in the kernel",
    }
    rows = []
    for name, title in titles.items():
        peer = None if name.startswith("unclaimed") else Cell("exits qemu", name)
        least = floor if name.endswith("_read") else None
        cells = Cell("exits pyvmm", name), peer, least, Cell("exits plain", name)
        rows.append(Row(title, unit, scale, *cells))
    return rows


def disk_rows(unit: str, scale: float) -> list[Row]:
    """Single requests, one at a time."""
    titles = {
        "random_read": "4 KiB read of a disk",
        "random_write": "4 KiB write of a disk",
        "sequential_read": "1 MiB read of a disk",
        "sequential_write": "1 MiB write of a disk",
        "write_and_flush": "4 KiB write of a disk, and a flush",
    }
    return [
        Row(title, unit, scale, Cell("disk pyvmm", name), Cell("disk qemu", name))
        for name, title in titles.items()
    ]


def start_rows(unit: str, scale: float) -> list[Row]:
    """Process starts and boots."""
    peer = Cell("first elf qemu", "ns")
    rows = [
        Row("process start to a Linux Image's first store", unit, scale,
            Cell("first image pyvmm", "ns"), peer),
        Row("process start to an ELF's first store", unit, scale,
            Cell("first elf pyvmm", "ns"), peer),
        Row("RSS with a tiny guest", *MEMORY,
            Cell("first image pyvmm", "rss_kib"), Cell("first elf qemu", "rss_kib")),
    ]  # fmt: skip
    return rows


def linux_rows(vcpus: int, unit: str, scale: float) -> list[Row]:
    """Boots of Linux."""
    rows = []
    many = f"{vcpus} vCPU{'s' if vcpus > 1 else ''}"
    for name, title in (("quiet", "quiet"), ("log", "the full log on the UART")):
        ours, peer = f"linux {name} {vcpus} pyvmm", f"linux {name} {vcpus} qemu"
        plain = Cell(f"linux {name} {vcpus} plain", "ns") if name == "log" else None
        rows.append(Row(f"exec to Linux's init, {title}, {many}", unit, scale,
                        Cell(ours, "ns"), Cell(peer, "ns"), None, plain))  # fmt: skip
    ours, peer = f"linux quiet {vcpus} pyvmm", f"linux quiet {vcpus} qemu"
    rows.append(Row(f"RSS at Linux's init, {many}", *MEMORY,
                    Cell(ours, "rss_kib"), Cell(peer, "rss_kib")))  # fmt: skip
    rows.append(Row(f"64-byte line from a Linux program to the UART, {many}", unit, scale,
                    Cell(ours, "line_ns"), Cell(peer, "line_ns")))  # fmt: skip
    return rows
