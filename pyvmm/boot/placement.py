"""The places of image, initrd and device tree in guest RAM.

     RAM_BASE                  +---------------------------+
     + text_offset or 0x80000  | image                     |  an ELF: its link address
                               |                           |
                               | initrd                    |  just below the device tree
     2 MiB aligned             | device tree, 64 KiB       |
     + min(RAM, 256 MiB)       +---------------------------+
                               | the rest of RAM           |

Source: kvmtool, arm/kvm.c. kvmtool fails if something does not fit below 256 MiB; pyvmm then tries
the end of all RAM.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm import layout
from pyvmm.base.records import Record
from pyvmm.boot.linux import Flags
from pyvmm.errors import ImageError
from pyvmm.memory.ram import GuestMemory

PAGE = 4 * layout.KIB
PLAUSIBLE_RAM = 1 << 40  # an image that needs more is damaged, or linked for another machine

Range = tuple[int, int]  # guest physical [start, end)


class Placed(Record):
    """A loaded image: its kind, its entry point, its memory, and the CPU features it needs."""

    kind: str
    entry: int
    ranges: tuple[Range, ...]
    flags: Flags = Flags(0)
    details: tuple[str, ...] = ()  # further lines for a verbose run


def check_in_ram(name: str, start: int, length: int, memory: GuestMemory, hint: str = "") -> None:
    """Raise an ImageError unless the whole range is in RAM.

    ``hint`` applies if more RAM would not help; the default is to link the image elsewhere.
    """
    if memory.contains(start, length):
        return
    end = start + length
    if start >= memory.base and end - memory.base <= PLAUSIBLE_RAM:
        hint = f"use `memory`={_ram_for(end, memory)}M or more"
    elif not hint:
        hint = f"link it to run at {memory.base + layout.KERNEL_OFFSET:#x}"
    raise ImageError(
        f"{name} is at {start:#x} to {end:#x}, outside RAM "
        f"({memory.base:#x} to {memory.end:#x}, {memory.size // layout.MIB} MiB)",
        hint=hint,
    )


def place_dtb(image: Iterable[Range], initrd_size: int, memory: GuestMemory) -> tuple[int, Range]:
    """Find room for the device tree and, below it, ``initrd_size`` bytes of initrd.

    Returns:
        The address of the device tree, and the range of the initrd.

    Raises:
        ImageError: RAM is too small for them and the image.
    """
    image = list(image)
    for limit in (min(memory.end, memory.base + layout.DTB_BELOW), memory.end):
        dtb = (limit - layout.DTB_SIZE) // layout.DTB_ALIGN * layout.DTB_ALIGN
        initrd = (dtb - initrd_size) // PAGE * PAGE
        wanted = [(dtb, dtb + layout.DTB_SIZE), (initrd, initrd + initrd_size)]
        if min(dtb, initrd) >= memory.base and not _overlap(wanted, image):
            return dtb, wanted[1]
    first, last = min(start for start, _ in image), max(end for _, end in image)
    raise ImageError(
        f"{memory.size // layout.MIB} MiB of RAM are too few: beside the image "
        f"({first:#x} to {last:#x}) there is no room for {layout.DTB_SIZE // layout.KIB} KiB of "
        f"device tree"
        + (f" and {initrd_size / layout.MIB:.1f} MiB of initrd" if initrd_size else ""),
        hint=f"use `memory`={_ram_for(last + initrd_size, memory)}M or more",
    )


def _overlap(some: list[Range], others: list[Range]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


def _ram_for(end: int, memory: GuestMemory) -> int:
    """Return the MiB of RAM that hold everything up to ``end``, then the device tree."""
    step = layout.DTB_ALIGN
    return (-(-(end - memory.base) // step) * step + step) // layout.MIB
