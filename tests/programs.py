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
    "load until not 0": """
        b9400061  ldr w1, [x3]
        34ffffe1  cbz w1, .-4
        b9000041  str w1, [x2]
        14000000  b .
    """,
    # from X2 up to X3, a store in each MiB; then 0 to X1
    "store flood": """
        b9000043  str w3, [x2]
        91440042  add x2, x2, #0x100, lsl #12
        eb03005f  cmp x2, x3
        54ffffa3  b.lo .-12
        b900003f  str wzr, [x1]
        14000000  b .
    """,
    "store a pair": """
        a9000041  stp x1, x0, [x2]
        14000000  b .
    """,
    "atomic": """
        b8210043  ldadd w1, w3, [x2]
        14000000  b .
    """,
    "echo": """
        39401443  ldrb w3, [x2, #5]
        3607ffe3  tbz w3, #0, .-4
        39400043  ldrb w3, [x2]
        39000043  strb w3, [x2]
        17fffffc  b .-16
    """,
    # Takes over the UART as a driver does: it writes W4 to FCR, and drops what it reads from RBR
    "echo after a reset": """
        39000844  strb w4, [x2, #2]
        39401443  ldrb w3, [x2, #5]
        39400043  ldrb w3, [x2]
        39401443  ldrb w3, [x2, #5]
        3607ffe3  tbz w3, #0, .-4
        39400043  ldrb w3, [x2]
        39000043  strb w3, [x2]
        17fffffc  b .-16
    """,
    # Sends X4 bytes, from X1 up, to a UART whose status it polls before each; then stores X1 at X5
    "poll": """
        39401443  ldrb w3, [x2, #5]
        362fffe3  tbz w3, #5, .-4
        39000041  strb w1, [x2]
        11000421  add w1, w1, #1
        d1000484  sub x4, x4, #1
        b5ffff64  cbnz x4, .-20
        b90000a1  str w1, [x5]
        14000000  b .
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
    # Z5 and P3 at the longest vectors; Z9, P4 and FFR after X4 became ZCR_EL1
    "vectors": """
        d2a00663  movz x3, #0x33, lsl #16
        d5181043  msr cpacr_el1, x3
        d28001e3  mov x3, #15
        d5181203  msr S3_0_C1_C2_0, x3
        d5033fdf  isb
        2538cb45  dup z5.b, #0x5a
        2518e3e3  ptrue p3.b
        d5181204  msr S3_0_C1_C2_0, x4
        d5033fdf  isb
        04214009  index z9.b, #0, #1
        2518e3e4  ptrue p4.b
        252c9000  setffr
        b9000041  str w1, [x2]
        14000000  b .
    """,
    # Z0 to Z6 count in lanes of every size, from W5, X6 and by X7 too; P1, and P2 and FFR up to X8;
    # then Z0 to Z6 and Z31 go to X9, and P1, P2, P15 and FFR to X10
    "lanes": """
        d2a00663  movz x3, #0x33, lsl #16
        d5181043  msr cpacr_el1, x3
        d28001e3  mov x3, #15
        d5181203  msr S3_0_C1_C2_0, x3
        d5033fdf  isb
        04234200  index z0.b, #-16, #3
        047940a1  index z1.h, #5, #-7
        04a344a2  index z2.s, w5, #3
        04e74cc3  index z3.d, x6, x7
        2518e3e0  ptrue p0.b
        6552a024  scvtf z4.h, p0/m, z1.h
        6594a045  scvtf z5.s, p0/m, z2.s
        65d6a066  scvtf z6.d, p0/m, z3.d
        25d8e3e1  ptrue p1.d
        25681fe2  whilelo p2.h, xzr, x8
        25289040  wrffr p2.b
        e5804120  str z0, [x9]
        e5804521  str z1, [x9, #1, mul vl]
        e5804922  str z2, [x9, #2, mul vl]
        e5804d23  str z3, [x9, #3, mul vl]
        e5805124  str z4, [x9, #4, mul vl]
        e5805525  str z5, [x9, #5, mul vl]
        e5805926  str z6, [x9, #6, mul vl]
        e5805d3f  str z31, [x9, #7, mul vl]
        e5800141  str p1, [x10]
        e5800542  str p2, [x10, #1, mul vl]
        e580094f  str p15, [x10, #2, mul vl]
        2519f004  rdffr p4.b
        e5800d44  str p4, [x10, #3, mul vl]
        b9000041  str w1, [x2]
        14000000  b .
    """,
    # Stores Z0, Z31, P0, P15 and FFR at X9 and X10, at the vector length of ZCR_EL1
    "stores": """
        d2a00663  movz x3, #0x33, lsl #16
        d5181043  msr cpacr_el1, x3
        d5033fdf  isb
        2519f004  rdffr p4.b
        e5804120  str z0, [x9]
        e580453f  str z31, [x9, #1, mul vl]
        e5800140  str p0, [x10]
        e580054f  str p15, [x10, #1, mul vl]
        e5800944  str p4, [x10, #2, mul vl]
        b9000041  str w1, [x2]
        14000000  b .
    """,
    # Guests without output: broken ones, then those that work or wait on purpose
    "undefined": """
        00000000  udf #0
        14000000  b .
    """,
    "zeros for vectors": """
        10000001  adr x1, .
        d518c001  msr vbar_el1, x1
        d5033fdf  isb
        00000000  udf #0
    """,
    "hang in a vector": """
        10000001  adr x1, .
        d518c001  msr vbar_el1, x1
        52a28003  movz w3, #0x1400, lsl #16
        b9020023  str w3, [x1, #512]
        d5033f9f  dsb sy
        d508751f  ic iallu
        d5033fdf  isb
        d42000e0  brk #7
    """,
    "poll QEMU's UART": """
        d2a12009  movz x9, #0x900, lsl #16
        b9401921  ldr w1, [x9, #24]
        17ffffff  b .-4
    """,
    "print to QEMU's UART": """
        d2a12009  movz x9, #0x900, lsl #16
        b9000121  str w1, [x9]
        d503205f  wfe
        17ffffff  b .-4
    """,
    "switch off": """
        52b08000  movz w0, #0x8400, lsl #16
        321f0000  orr w0, w0, #2
        d4000002  hvc #0
        14000000  b .
    """,
    "wait": """
        d503207f  wfi
        17ffffff  b .-4
    """,
    "wait for a timer": """
        d53be041  mrs x1, cntvct_el0
        b2500021  orr x1, x1, #0x1000000000000
        d51be341  msr cntv_cval_el0, x1
        d2800021  mov x1, #1
        d51be321  msr cntv_ctl_el0, x1
        d503207f  wfi
        17ffffff  b .-4
    """,
    "wait for input": """
        d2a02002  movz x2, #0x100, lsl #16
        39401443  ldrb w3, [x2, #5]
        3607ffe3  tbz w3, #0, .-4
        14000000  b .
    """,
    "store of a structure": """
        d2a00600  movz x0, #0x30, lsl #16
        d5181040  msr cpacr_el1, x0
        d5033fdf  isb
        d2a02000  movz x0, #0x100, lsl #16
        4c007800  st1 {v0.4s}, [x0]
        14000000  b .
    """,
}


def words(program: str) -> bytes:
    """Return a program's machine code."""
    return code_of(PROGRAMS[program])


def code_of(lines: str) -> bytes:
    """Return the machine code of lines like those of a program."""
    return b"".join(
        int(line.split()[0], 16).to_bytes(4, "little") for line in lines.strip().splitlines()
    )


def source(program: str) -> str:
    """Return a program's source for an assembler."""
    return source_of(PROGRAMS[program])


def source_of(lines: str) -> str:
    """Return the source of lines like those of a program."""
    return "".join(f"{line.split(maxsplit=1)[1]}\n" for line in lines.strip().splitlines())


def write(program: str, directory: Path) -> Path:
    """Make a flat image of a program."""
    path = directory / program
    path.write_bytes(words(program))
    return path
