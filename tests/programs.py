"""Tiny guests for the tests of machines: each line an instruction's word and its source.

The tests set registers before the start: X2 is the device a program talks to, X1 a value.
"""

from __future__ import annotations

from pathlib import Path

PROGRAMS = {
    "store": """
        b9000041  str w1, [x2]
        14000000  b .
    """,
    "flood": """
        39000041  strb w1, [x2]
        17ffffff  b .-4
    """,
    "call": """
        d4000002  hvc #0
        14000000  b .
    """,
    "spin": """
        14000000  b .
    """,
    "count": """
        91000421  add x1, x1, #1
        17ffffff  b .-4
    """,
    "load": """
        b9400061  ldr w1, [x3]
        b9000041  str w1, [x2]
        14000000  b .
    """,
    "load byte": """
        39400061  ldrb w1, [x3]
        b9000041  str w1, [x2]
        14000000  b .
    """,
    "undecodable": """
        a9000041  stp x1, x0, [x2]
        14000000  b .
    """,
    "echo": """
        39401443  ldrb w3, [x2, #5]
        3607ffe3  tbz w3, #0, .-4
        39400043  ldrb w3, [x2]
        39000043  strb w3, [x2]
        17fffffc  b .-16
    """,
    "quadwords": """
        d2a00663  movz x3, #0x33, lsl #16
        d5181043  msr cpacr_el1, x3
        d28001e3  mov x3, #15
        d5181203  msr S3_0_C1_C2_0, x3
        d5033fdf  isb
        04bf5021  rdvl x1, #1
        d344fc21  lsr x1, x1, #4
        b9000041  str w1, [x2]
        14000000  b .
    """,
}


def words(program: str) -> bytes:
    """A program's machine code."""
    lines = PROGRAMS[program].strip().splitlines()
    return b"".join(int(line.split()[0], 16).to_bytes(4, "little") for line in lines)


def source(program: str) -> str:
    """A program as an assembler takes it."""
    lines = PROGRAMS[program].strip().splitlines()
    return "\n".join(line.split(maxsplit=1)[1] for line in lines) + "\n"


def write(program: str, directory: Path) -> Path:
    """Make a flat image of a program."""
    path = directory / program
    path.write_bytes(words(program))
    return path
