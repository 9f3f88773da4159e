"""The guests of the conformance run: a few instructions each, which report by writes to [x20].

They run at EL1 with the MMU off.  Each line is an instruction's word and its source.  A test
compares the words with an assembler's.
"""

from __future__ import annotations

PROGRAMS = {
    # Enables SVE, and reports RDVL for ZCR_EL1.LEN from 0 to 15.
    "lengths": """
        d2a00669  mov x9, #0x330000
        d5181049  msr cpacr_el1, x9
        d5033fdf  isb
        d2800000  mov x0, #0
        d5181200  msr S3_0_C1_C2_0, x0
        d5033fdf  isb
        04bf5021  rdvl x1, #1
        f9000281  str x1, [x20]
        91000400  add x0, x0, #1
        f100401f  cmp x0, #16
        54ffff41  b.ne .-24
        14000000  b .
    """,
    # Reports ZCR_EL1 after a write of all ones.
    "zcr": """
        d2a00669  mov x9, #0x330000
        d5181049  msr cpacr_el1, x9
        d5033fdf  isb
        92800000  mov x0, #-1
        d5181200  msr S3_0_C1_C2_0, x0
        d5381201  mrs x1, S3_0_C1_C2_0
        f9000281  str x1, [x20]
        14000000  b .
    """,
    # Reports ID_AA64PFR0_EL1 and ID_AA64ZFR0_EL1.
    "id": """
        d5380401  mrs x1, id_aa64pfr0_el1
        f9000281  str x1, [x20]
        d5380481  mrs x1, S3_0_C0_C4_4
        f9000281  str x1, [x20]
        14000000  b .
    """,
    # Reports the low 64 bits and the last byte of Z1, and the numbers of bits set in P1 and FFR.
    # Then numbers the bytes of Z0, sets all of P0 and FFR, clears P3, and reports once more.
    "vectors": """
        d2a00669  mov x9, #0x330000
        d5181049  msr cpacr_el1, x9
        d5033fdf  isb
        d28001e9  mov x9, #15
        d5181209  msr S3_0_C1_C2_0, x9
        d5033fdf  isb
        9e660021  fmov x1, d1
        f9000281  str x1, [x20]
        2518e3e0  ptrue p0.b
        0521a021  lastb w1, p0, z1.b
        f9000281  str x1, [x20]
        25208021  cntp x1, p0, p1.b
        f9000281  str x1, [x20]
        2519f002  rdffr p2.b
        25208041  cntp x1, p0, p2.b
        f9000281  str x1, [x20]
        04214000  index z0.b, #0, #1
        2518e403  pfalse p3.b
        25289000  wrffr p0.b
        f9000294  str x20, [x20]
        14000000  b .
    """,
    # Executes RDVL, a write and a read of ZCR_EL1, and INDEX.
    "undefined": """
        d2a00669  mov x9, #0x330000
        d5181049  msr cpacr_el1, x9
        d5033fdf  isb
        04bf5020  rdvl x0, #1
        d5181200  msr S3_0_C1_C2_0, x0
        d5381200  mrs x0, S3_0_C1_C2_0
        04214000  index z0.b, #0, #1
        14000000  b .
    """,
    # The handler of exceptions from EL1: reports ESR_EL1, and skips the instruction.
    "handler": """
        d5385201  mrs x1, esr_el1
        f9000281  str x1, [x20]
        d5384021  mrs x1, elr_el1
        91001021  add x1, x1, #4
        d5184021  msr elr_el1, x1
        d69f03e0  eret
    """,
}


def code(program: str) -> bytes:
    """Return a program's machine code."""
    lines = PROGRAMS[program].strip().splitlines()
    return b"".join(int(line.split()[0], 16).to_bytes(4, "little") for line in lines)
