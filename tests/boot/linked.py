"""A small guest, linked by the cross toolchain in the ways people link kernels.

It prints "P", or "X" where its data is not as it was linked. Its exit code comes from its data.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from pyvmm import layout

CODE = 7
SOURCE = f"""
	.text
	.globl	_start
_start:
#ifdef IMAGE
	b	go
	.long	0
	.quad	0, 0x200000, 0xa		// text_offset, image_size, flags
	.quad	0, 0, 0
	.ascii	"ARM\\x64"
	.long	0
go:
#endif
	adr	x3, code
	ldr	w4, [x3, #4]
	mov	w5, #0x0304
	movk	w5, #0x0102, lsl #16
	cmp	w4, w5
	mov	w1, #'P'
	mov	w6, #'X'
	csel	w1, w1, w6, eq
	mov	x9, #{layout.UART.base:#x}
	strb	w1, [x9]
	mov	w1, #'\\n'
	strb	w1, [x9]
	ldr	w1, [x3]
	mov	x2, #{layout.EXIT.base:#x}
	str	w1, [x2]
1:	wfi
	b	1b
	.data
code:	.word	{CODE}
	.word	0x01020304
	.bss
	.skip	0x3000
"""

# The virtual addresses are high, the physical ones in RAM.
HIGHER_HALF = """
ENTRY({entry})
physical_start = 0x80080000;
SECTIONS
{{
	. = 0xffff000080080000;
	.text : AT(0x80080000) {{ *(.text) }}
	. = ALIGN(0x1000);
	.data : AT(0x80081000) {{ *(.data) }}
	.bss : {{ *(.bss) }}
}}
"""

# The .bss of the first segment covers the second.
BSS_INTO_NEXT = """
ENTRY(_start)
PHDRS { text PT_LOAD FLAGS(7); data PT_LOAD FLAGS(6); }
SECTIONS
{
	. = 0x80080000;
	.text : { *(.text) } :text
	.bss (NOLOAD) : { *(.bss) } :text
	.data 0x80081000 : { *(.data) } :data
}
"""

VMLINUX = """
ENTRY(_start)
PHDRS { text PT_LOAD FLAGS(5); data PT_LOAD FLAGS(6); note PT_NOTE; }
SECTIONS
{
	. = 0xffff800080000000;
	.text : { *(.text) } :text
	. = ALIGN(0x1000);
	.data : { *(.data) } :data
	.bss : { *(.bss) } :data
	.notes : { LONG(4) LONG(4) LONG(3) LONG(0x554e47) LONG(0) } :data :note
}
"""


class Link(NamedTuple):
    """The words for gcc, and a linker script."""

    words: tuple[str, ...] = ("-static", "-no-pie")
    script: str = ""


def at(address: int) -> str:
    """Return the word that links the first segment for an address."""
    return f"-Wl,-Ttext-segment={address:#x}"


# As Linux is linked. GNU ld makes an ET_EXEC of a -static-pie at another address than 0.
PIE = ("-shared", "-Wl,-Bsymbolic,-e,_start")

BOOTS = {
    "fixed": Link(("-static", "-no-pie", at(0x8008_0000))),
    "pie-linked-in-ram": Link((*PIE, at(0x8020_0000))),
    "pie-linked-at-0": Link(("-static-pie",)),
    "pie-linked-at-qemus-ram": Link((*PIE, at(0x4008_0000))),
    "higher-half": Link(script=HIGHER_HALF.format(entry="_start")),
    "higher-half-physical-entry": Link(script=HIGHER_HALF.format(entry="physical_start")),
    "bss-into-next": Link(
        ("-static", "-no-pie", "-Wl,--no-check-sections"), script=BSS_INTO_NEXT
    ),
    "big-endian": Link(("-static", "-no-pie", "-mbig-endian", at(0x8008_0000))),
    "vmlinux": Link(("-static", "-no-pie", "-DIMAGE"), script=VMLINUX),
}  # fmt: skip
QEMUS = Link(("-static", "-no-pie", at(0x4008_0000)))


def link(gcc: Path, kind: Link, out: Path) -> Path:
    """Build the guest, and return its path."""
    source, script = out.with_suffix(".S"), out.with_suffix(".ld")
    source.write_text(SOURCE)
    script.write_text(kind.script)
    words = [*kind.words, *(["-Wl,-T," + str(script)] if kind.script else [])]
    options = ("-nostdlib", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096")
    run([gcc, *options, *words, source, "-o", out])
    return out


def link_program(gcc: Path, out: Path, *words: str) -> Path:
    """Build a program for Linux, and return its path."""
    source = out.with_suffix(".c")
    source.write_text("int main(void) { return 0; }\n")
    run([gcc, *words, source, "-o", out])
    return out


def run(command: list[str | Path]) -> None:
    """Run a tool; a failure shows its messages."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def link_vmlinux(gcc: Path, image: Path, out: Path) -> Path:
    """Build a vmlinux around an arm64 Image, and return its path."""
    source, script = out.with_suffix(".S"), out.with_suffix(".ld")
    source.write_text(f'.globl _start\n_start: .incbin "{image}"\n')
    script.write_text(VMLINUX)
    words = ("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", f"-Wl,-T,{script}")
    run([gcc, *words, source, "-o", out])
    return out
