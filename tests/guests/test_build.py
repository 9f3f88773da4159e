from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from pyvmm import layout
from tests.guests.conftest import GUESTS, flat_image, loadable

NAMES = (
    "hello", "exit", "sve-vls", "sve-zcr", "zcr-el12", "sve-math", "sve-snapshot", "smp", "timer",
    "echo", "virtio-console", "id-registers", "mte",
)  # fmt: skip
# SVE instructions in guests/sve/access.S
ACCESS = 32 * 2 + 16 * 2 + 8 + 1
SVE = dict.fromkeys(("sve-vls", "sve-zcr", "zcr-el12", "sve-snapshot"), ACCESS)
FP = ("sve-math",)  # its scalar twins
LOAD_ADDRESS = layout.RAM_BASE + layout.KERNEL_OFFSET


@pytest.fixture(params=NAMES)
def elf(request: pytest.FixtureRequest, built: Path) -> Iterator[Any]:
    with (built / request.param).open("rb") as file:
        yield ELFFile(file)


def instructions(elf: Any) -> Iterator[tuple[int, int]]:
    """Return (address, word) of all code; the guests' constants are in other sections."""
    for section in elf.iter_sections():
        if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR:
            data = section.data()
            for offset in range(0, len(data), 4):
                word = int.from_bytes(data[offset : offset + 4], "little")
                yield section["sh_addr"] + offset, word


def is_sve(word: int) -> bool:
    """Return whether an instruction is in the SVE group.  Source: Arm DDI 0487, C4.1, op0."""
    return word >> 25 & 0xF == 0b0010


def is_fp(word: int) -> bool:
    """Return whether an instruction is scalar FP or Advanced SIMD, loads and stores included."""
    group = word >> 25 & 0xF
    loads_or_stores = group & 0b0101 == 0b0100
    return group & 0b0111 == 0b0111 or bool(loads_or_stores and word >> 26 & 1)


def test_build_makes_every_guest_and_nothing_else(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == sorted(NAMES)


def test_every_guest_begins_with_a_comment_on_its_purpose() -> None:
    for name in NAMES:
        first_line = (GUESTS / f"{name}.c").read_text().splitlines()[0]

        assert re.fullmatch(rf"/\* {name}: .+\. \*/", first_line)


def test_guest_is_a_small_static_aarch64_executable(elf: Any) -> None:
    kinds = {segment["p_type"] for segment in elf.iter_segments()}

    assert (elf["e_machine"], elf["e_type"]) == ("EM_AARCH64", "ET_EXEC")
    assert (elf.elfclass, elf.little_endian) == (64, True)
    assert kinds == {"PT_LOAD"}  # no PT_INTERP, no PT_DYNAMIC
    assert elf.stream_len < 64 * layout.KIB


def test_guest_lies_in_ram_below_any_device_tree(elf: Any) -> None:
    segments = loadable(elf)

    assert segments[0]["p_paddr"] == LOAD_ADDRESS
    for segment in segments:
        assert segment["p_paddr"] == segment["p_vaddr"]
        assert segment["p_paddr"] >= LOAD_ADDRESS
        assert segment["p_paddr"] + segment["p_memsz"] <= layout.RAM_BASE + layout.DTB_ALIGN


def test_flat_image_begins_with_the_entry(elf: Any) -> None:
    image = flat_image(Path(elf.stream.name))

    entry = elf["e_entry"] - LOAD_ADDRESS

    assert entry == 0
    assert image[:4] == elf.get_section_by_name(".text").data()[:4]


def test_guest_uses_sve_and_fp_only_to_test_sve(elf: Any, request: pytest.FixtureRequest) -> None:
    sve = [hex(address) for address, word in instructions(elf) if is_sve(word)]
    fp = [hex(address) for address, word in instructions(elf) if is_fp(word)]

    guest = request.node.callspec.params["elf"]
    assert bool(fp) == (guest in FP)
    if guest in FP:
        assert sve
    else:
        assert len(sve) == SVE.get(guest, 0)  # all from .S files, none from the compiler


def test_layout_header_agrees_with_the_memory_map() -> None:
    done = subprocess.run(
        [sys.executable, GUESTS / "layout_h.py", layout.__file__],
        capture_output=True,
        text=True,
        check=True,
    )

    header = dict(re.findall(r"^#define (\w+) +(0x[0-9a-f]+)", done.stdout, re.MULTILINE))

    assert {name: int(value, 16) for name, value in header.items()} == {
        "UART_BASE": layout.uart(0).base,
        "UART_SPI": layout.uart(0).spi,
        "VIRTIO_BASE": layout.virtio(0).base,
        "VIRTIO_SPI": layout.virtio(0).spi,
        "EXIT_BASE": layout.EXIT.base,
        "GICD_BASE": layout.GICD.base,
        "GICC_BASE": layout.GICC.base,
        "GICR_SIZE": layout.gicr(1).size,
        "GICR_END": layout.gicr(512).end,
        "PPI_TIMER_VIRT": layout.PPI_TIMER_VIRT,
        "PPI_TIMER_HYP_VIRT": layout.PPI_TIMER_HYP_VIRT,
        "RAM_BASE": layout.RAM_BASE,
        "KERNEL_OFFSET": layout.KERNEL_OFFSET,
        "DTB_ALIGN": layout.DTB_ALIGN,
    }
