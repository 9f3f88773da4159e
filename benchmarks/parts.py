"""The files of a comparison in one directory: the guests, and Debian's QEMU for arm64."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.inside import IN_SIZE, OUT_SIZE
from benchmarks.rows import WORK
from benchmarks.snapshots import FILL
from pyvmm import layout
from pyvmm.base.dirs import cached
from pyvmm.errors import HostError
from pyvmm.host.parts import kernel, tools
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.parts.debian import Suite
from pyvmm.host.progress import Progress

PROGRAMS: Final = Path(__file__).with_name("programs")
SUITE: Final = "bookworm"  # of the guest's kernel and of the peer
LKVM_VARIABLE: Final = "LKVM"  # of the environment: the path of an lkvm for arm64
EM_AARCH64: Final = b"\xb7\0"  # e_machine, little endian.  Source: ELF for the Arm 64-bit, 5.1
CLOUD_KERNEL: Final = re.compile(r"linux-image-.*-cloud-arm64$")
NUMBERS: Final = {"WORK": WORK, "FILL": FILL, "STEP": 50_000}  # macros of the guests, too
FREESTANDING: Final = ("-O2", "-ffreestanding", "-nostdlib", "-static", "-mgeneral-regs-only",
                       "-mstrict-align", "-fno-stack-protector", "-Wl,--build-id=none",
                       "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096")  # fmt: skip


PL031_IMSC: Final = 0x10  # the interrupt mask.  Source: Arm DDI 0224C, table 3-1


@dataclass(frozen=True, slots=True)
class Board:
    """The addresses of a VMM's devices, as macros of the guests, and their link address."""

    name: str
    text: int
    macros: dict[str, str]


PYVMM: Final = Board(
    "pyvmm",
    layout.RAM_BASE + layout.KERNEL_OFFSET,
    {
        "UART": f"{layout.UART.base:#x}",
        "STATUS": f"READ8({layout.UART.base + 5:#x})",
        "READY": "status & 0x20",  # LSR.THRE
        "ARRIVED": "status & 0x01",  # LSR.DR
        "FIFO": f"READ8({layout.UART.base + 2:#x}) = 1",  # FCR
        "RESET": f"READ8({layout.UART.base + 2:#x}) = 3",
        "RTC_READ": f"READ32({layout.RTC.base:#x})",
        "RTC_WRITE": f"READ32({layout.RTC.base + PL031_IMSC:#x}) = 0",
        "HOLE": f"{layout.FLASH.base:#x}",
    },
)
# Source: QEMU, hw/arm/virt.c, base_memmap (no device is behind the virtio-mmio slots); Arm DDI 0183
QEMU: Final = Board(
    "qemu",
    0x4008_0000,
    {
        "UART": "0x9000000",
        "STATUS": "READ32(0x9000018)",
        "READY": "!(status & 0x20)",  # UARTFR.TXFF
        "ARRIVED": "!(status & 0x10)",  # UARTFR.RXFE
        "FIFO": "READ32(0x900002c) = 0x70",  # UARTLCR_H: 8 bits, FEN
        "RTC_READ": "READ32(0x9010000)",
        "RTC_WRITE": f"READ32({0x901_0000 + PL031_IMSC:#x}) = 0",
        "HOLE": "0xa010000",
    },
)
# lkvm has pyvmm's map, and an MC146818: a register to select and a register of data.  It hands a
# guest that polls its UART no input, so the guest takes none.
# Source: kvmtool, hw/rtc.c and arm/include/arm-common/kvm-arch.h
HEAD: Final = ".head"  # a flat image begins with its entry
LKVM: Final = Board(
    "lkvm",
    PYVMM.text + 0x1000,
    {name: text for name, text in PYVMM.macros.items() if name not in ("FIFO", "RESET")}
    | {
        "RTC_READ": f"READ8({layout.RTC.base + 1:#x})",
        "RTC_WRITE": f"READ8({layout.RTC.base:#x}) = 0",
        "START": f'"{HEAD}"',
    },
)


def build(into: Path, lkvm: Path | None, progress: Progress) -> None:
    """Build every file that runs inside the host: guests, kernel, initrd, and the floor.

    Raises: HostError, also if ``lkvm`` is not a program for arm64.
    """
    if lkvm is not None:
        copy_lkvm(lkvm, into, progress)
    peer_archive(peer(progress), into / "peer.tar")
    for board in (PYVMM, QEMU):
        _guest("exits.c", into / f"exits-{board.name}", board, progress)
        _guest("first.S", into / f"first-{board.name}", board, progress)
        _guest("work.S", into / f"work-{board.name}", board, progress)
        _guest("filled.S", into / f"filled-{board.name}", board, progress)
    _linux_stub(into, progress)
    _compile("floor.c", into / "floor", ["-O2", "-static"], progress)
    _compile("init.c", into / "init", [*FREESTANDING], progress)
    _compile("init.c", into / "typed", [*FREESTANDING, "-DTYPED"], progress)
    for program, initrd in (("init", "initrd"), ("typed", "typed-initrd")):
        (into / initrd).write_bytes(_initrd((into / program).read_bytes()))
    image = cloud_kernel(progress)
    (into / "Image").write_bytes(image.read_bytes())
    modules = kernel.find(str(image.parents[1]), progress)
    sizes = [f"-DOUT_SIZE={OUT_SIZE}", f"-DIN_SIZE={IN_SIZE}"]
    for name, wanted in (
        ("block", "virtio_blk"), ("console", "virtio_console"), ("entropy", "virtio_rng"),
    ):  # fmt: skip
        _compile(f"{name}.c", into / name, ["-O2", "-static", *sizes], progress)
        init = (into / name).read_bytes()
        archive = _initrd(init, modules.modules(("virtio_mmio", wanted)))
        (into / f"{name}-initrd").write_bytes(archive)


def _guest(
    source: str, out: Path, board: Board, progress: Progress, more: Iterable[str] = ()
) -> None:
    macros = [f"-D{name}={value}" for name, value in (board.macros | NUMBERS).items()]
    link = [f"-Wl,-Ttext={board.text:#x}", "-Wl,--no-warn-rwx-segments"]
    _compile(source, out, [*FREESTANDING, *macros, *link, *more], progress)


def copy_lkvm(program: Path, into: Path, progress: Progress) -> None:
    """Copy lkvm, and build the guest that it runs: it loads no ELF.

    Raises: HostError.
    """
    try:
        content = program.read_bytes()
    except OSError as error:
        raise HostError(f"{LKVM_VARIABLE}={program}: {error.strerror}") from error
    if content[:4] != b"\x7fELF" or content[18:20] != EM_AARCH64:
        raise HostError(f"{LKVM_VARIABLE}={program}: not a program for arm64")
    (into / "lkvm").write_bytes(content)
    (into / "lkvm").chmod(0o755)
    elf = into / "exits-lkvm.elf"
    head = f"-Wl,--section-start={HEAD}={PYVMM.text:#x}"
    _guest("exits.c", elf, LKVM, progress, [head])
    tools.cross("objcopy", progress).run(["-O", "binary", str(elf), str(into / "exits-lkvm")])


def _linux_stub(into: Path, progress: Progress) -> None:
    """Make a Linux Image whose code is that first instruction."""
    elf = into / "first-linux.elf"
    uart = PYVMM.macros["UART"]
    _compile("first.S", elf, [*FREESTANDING, "-DLINUX_HEADER", f"-DUART={uart}"], progress)
    tools.cross("objcopy", progress).run(
        ["-O", "binary", "-j", ".text", str(elf), str(into / "first-linux")]
    )


def _compile(source: str, out: Path, options: Iterable[str], progress: Progress) -> None:
    tools.cross("gcc", progress).run([*options, "-o", str(out), str(PROGRAMS / source)])


def _initrd(init: bytes, modules: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
    archive = io.BytesIO()
    writer = CpioWriter(archive)
    writer.directory("dev")
    writer.device("dev/console", 5, 1)
    writer.file("init", init, 0o755)
    for number, (name, content) in enumerate(modules.items()):
        writer.file(f"modules/{number:02}-{name}.ko", content)
    writer.close()
    return archive.getvalue()


def cloud_kernel(progress: Progress) -> Path:
    """Return Debian's cloud kernel, uncompressed."""
    path = tools.trees_dir() / f"linux-cloud-{SUITE}"

    def make(into: Path) -> None:
        source = Suite(SUITE)
        parts = source.closure(["linux-image-cloud-arm64:arm64"])
        source.unpack([p for p in parts if CLOUD_KERNEL.match(p.name)], into, progress)

    if not path.is_dir():
        with progress.step("getting Debian's cloud kernel"):
            cached(path, make)
    (image,) = path.glob("boot/vmlinuz-*")
    return image


def peer(progress: Progress) -> Path:
    """Unpack Debian's qemu-system-aarch64 for arm64 with its libraries."""
    return tools.tree("qemu-arm64", SUITE, ["qemu-system-arm:arm64"], progress)


def peer_archive(tree: Path, out: Path) -> None:
    """Pack the files of the peer that run into one file, for the host's memory.

    Raises: HostError.
    """
    names = ["usr/bin/qemu-system-aarch64", "usr/share/qemu", "lib", "usr/lib"]
    there = [name for name in names if (tree / name).exists()]
    done = subprocess.run(
        ["tar", "-C", str(tree), "--exclude=*.a", "--exclude=x86_64-linux-gnu", "-cf", str(out),
         *there],
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise HostError(f"tar: {done.stderr.decode(errors='replace').strip()}")
