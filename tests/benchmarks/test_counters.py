"""The counter's system call, compared with the kernel's own headers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from benchmarks import counters
from pyvmm.host.parts import tools
from pyvmm.host.progress import Progress

SOURCE = """
#include <linux/perf_event.h>
#include <asm/unistd.h>

struct perf_event_attr attr __attribute__((section(".wanted.attr"))) = {
	.type = PERF_TYPE_HARDWARE,
	.size = PERF_ATTR_SIZE_VER1,
	.config = PERF_COUNT_HW_INSTRUCTIONS,
};
int numbers[] __attribute__((section(".wanted.numbers"))) = {
	__NR_perf_event_open, PERF_FLAG_FD_CLOEXEC,
};
"""


def test_counter_asks_for_what_the_kernels_headers_define(tmp_path: Path) -> None:
    source, made = tmp_path / "attr.c", tmp_path / "attr.o"
    source.write_text(SOURCE)
    tools.cross("gcc", Progress(quiet=True)).run(["-c", "-o", str(made), str(source)])

    with made.open("rb") as file:
        elf: Any = ELFFile(file)
        attr, numbers = (
            elf.get_section_by_name(f".wanted.{name}").data() for name in ("attr", "numbers")
        )

    assert attr[: counters.PERF_ATTR_SIZE_VER1] == counters.ATTRIBUTES
    assert struct.unpack("=ii", numbers) == (
        counters.SYS_PERF_EVENT_OPEN,
        counters.PERF_FLAG_FD_CLOEXEC,
    )
