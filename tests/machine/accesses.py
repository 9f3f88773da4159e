"""The forms of accesses that are tested: each, and after it plain instructions that do the same.

Each line is an instruction's word and its source. X16 and X17 are for the plain ones.

The plain ones extend the sign by an instruction of their own. Linux before "KVM: arm64: Fix
sign-extension of MMIO loads" (2026) returns zero-extended values from LDRSB, LDRSH and LDRSW of
devices: kvm_handle_mmio_return() extends the sign, then vcpu_data_host_to_guest() removes it.
Source: Linux b30070862edb (v3.13), which that change fixes; its selftest arm64/mmio_sign_ext.c.
"""

from __future__ import annotations

STORE_Q1 = """
9e660030  fmov x16, d1
f9000010  str x16, [x0]
9eae0030  fmov x16, v1.d[1]
f9000410  str x16, [x0, #8]
""".strip()
STORE_Q1_Q2 = f"""
{STORE_Q1}
9e660050  fmov x16, d2
f9000810  str x16, [x0, #16]
9eae0050  fmov x16, v2.d[1]
f9000c10  str x16, [x0, #24]
""".strip()
LOAD_Q1 = """
f9400010  ldr x16, [x0]
9e670201  fmov d1, x16
f9400410  ldr x16, [x0, #8]
4e181e01  mov v1.d[1], x16
""".strip()

FORMS = f"""
    b8004401  str w1, [x0], #4
    b9000001  str w1, [x0]
    91001000  add x0, x0, #4

    f81f8c01  str x1, [x0, #-8]!
    d1002000  sub x0, x0, #8
    f9000001  str x1, [x0]

    38001401  strb w1, [x0], #1
    39000001  strb w1, [x0]
    91000400  add x0, x0, #1

    78002c01  strh w1, [x0, #2]!
    91000800  add x0, x0, #2
    79000001  strh w1, [x0]

    f800841f  str xzr, [x0], #8
    f900001f  str xzr, [x0]
    91002000  add x0, x0, #8

    b8404401  ldr w1, [x0], #4
    b9400001  ldr w1, [x0]
    91001000  add x0, x0, #4

    f8408c01  ldr x1, [x0, #8]!
    91002000  add x0, x0, #8
    f9400001  ldr x1, [x0]

    385ff401  ldrb w1, [x0], #-1
    39400001  ldrb w1, [x0]
    d1000400  sub x0, x0, #1

    78402c01  ldrh w1, [x0, #2]!
    91000800  add x0, x0, #2
    79400001  ldrh w1, [x0]

    38c01401  ldrsb w1, [x0], #1
    39400001  ldrb w1, [x0]
    13001c21  sxtb w1, w1
    91000400  add x0, x0, #1

    38801401  ldrsb x1, [x0], #1
    39400001  ldrb w1, [x0]
    93401c21  sxtb x1, w1
    91000400  add x0, x0, #1

    78c02401  ldrsh w1, [x0], #2
    79400001  ldrh w1, [x0]
    13003c21  sxth w1, w1
    91000800  add x0, x0, #2

    78802401  ldrsh x1, [x0], #2
    79400001  ldrh w1, [x0]
    93403c21  sxth x1, w1
    91000800  add x0, x0, #2

    b8804c01  ldrsw x1, [x0, #4]!
    91001000  add x0, x0, #4
    b9400001  ldr w1, [x0]
    93407c21  sxtw x1, w1

    f840841f  ldr xzr, [x0], #8
    f940001f  ldr xzr, [x0]
    91002000  add x0, x0, #8

    f84107e1  ldr x1, [sp], #16
    f94003e1  ldr x1, [sp]
    910043ff  add sp, sp, #16

    b81f0fe2  str w2, [sp, #-16]!
    d10043ff  sub sp, sp, #16
    b90003e2  str w2, [sp]

    29000801  stp w1, w2, [x0]
    b9000001  str w1, [x0]
    b9000402  str w2, [x0, #4]

    a9810801  stp x1, x2, [x0, #16]!
    91004000  add x0, x0, #16
    f9000001  str x1, [x0]
    f9000402  str x2, [x0, #8]

    a8bf7c01  stp x1, xzr, [x0], #-16
    f9000001  str x1, [x0]
    f900041f  str xzr, [x0, #8]
    d1004000  sub x0, x0, #16

    a8008801  stnp x1, x2, [x0, #8]
    f9000401  str x1, [x0, #8]
    f9000802  str x2, [x0, #16]

    29400801  ldp w1, w2, [x0]
    b9400001  ldr w1, [x0]
    b9400402  ldr w2, [x0, #4]

    a8c10801  ldp x1, x2, [x0], #16
    f9400001  ldr x1, [x0]
    f9400402  ldr x2, [x0, #8]
    91004000  add x0, x0, #16

    a9400400  ldp x0, x1, [x0]
    aa0003f0  mov x16, x0
    f9400200  ldr x0, [x16]
    f9400601  ldr x1, [x16, #8]

    a9c107ff  ldp xzr, x1, [sp, #16]!
    910043ff  add sp, sp, #16
    f94003ff  ldr xzr, [sp]
    f94007e1  ldr x1, [sp, #8]

    69c10801  ldpsw x1, x2, [x0, #8]!
    91002000  add x0, x0, #8
    b9400001  ldr w1, [x0]
    93407c21  sxtw x1, w1
    b9400402  ldr w2, [x0, #4]
    93407c42  sxtw x2, w2

    28400801  ldnp w1, w2, [x0]
    b9400001  ldr w1, [x0]
    b9400402  ldr w2, [x0, #4]

    3c001401  str b1, [x0], #1
    0e013c30  umov w16, v1.b[0]
    39000010  strb w16, [x0]
    91000400  add x0, x0, #1

    7d000401  str h1, [x0, #2]
    0e023c30  umov w16, v1.h[0]
    79000410  strh w16, [x0, #2]

    bc004c01  str s1, [x0, #4]!
    91001000  add x0, x0, #4
    1e260030  fmov w16, s1
    b9000010  str w16, [x0]

    fd000001  str d1, [x0]
    9e660030  fmov x16, d1
    f9000010  str x16, [x0]

    fc1f8001  stur d1, [x0, #-8]
    9e660030  fmov x16, d1
    f81f8010  stur x16, [x0, #-8]

    3d800001  str q1, [x0]
    {STORE_Q1}

    3ca3681f  str q31, [x0, x3]
    8b030010  add x16, x0, x3
    9e6603f1  fmov x17, d31
    f9000211  str x17, [x16]
    9eae03f1  fmov x17, v31.d[1]
    f9000611  str x17, [x16, #8]

    bc234801  str s1, [x0, w3, uxtw]
    8b234010  add x16, x0, w3, uxtw
    1e260031  fmov w17, s1
    b9000211  str w17, [x16]

    3d400001  ldr b1, [x0]
    39400010  ldrb w16, [x0]
    1e270201  fmov s1, w16

    7c402401  ldr h1, [x0], #2
    79400010  ldrh w16, [x0]
    1e270201  fmov s1, w16
    91000800  add x0, x0, #2

    bd400001  ldr s1, [x0]
    b9400010  ldr w16, [x0]
    1e270201  fmov s1, w16

    fc408c01  ldr d1, [x0, #8]!
    91002000  add x0, x0, #8
    f9400010  ldr x16, [x0]
    9e670201  fmov d1, x16

    fc64d801  ldr d1, [x0, w4, sxtw #3]
    8b24cc10  add x16, x0, w4, sxtw #3
    f9400210  ldr x16, [x16]
    9e670201  fmov d1, x16

    3c65e801  ldr b1, [x0, x5, sxtx]
    8b25e010  add x16, x0, x5, sxtx
    39400210  ldrb w16, [x16]
    1e270201  fmov s1, w16

    3cc10401  ldr q1, [x0], #16
    {LOAD_Q1}
    91004000  add x0, x0, #16

    3ce37801  ldr q1, [x0, x3, lsl #4]
    8b031010  add x16, x0, x3, lsl #4
    f9400211  ldr x17, [x16]
    9e670221  fmov d1, x17
    f9400611  ldr x17, [x16, #8]
    4e181e21  mov v1.d[1], x17

    3cc10001  ldur q1, [x0, #16]
    f9400810  ldr x16, [x0, #16]
    9e670201  fmov d1, x16
    f9400c10  ldr x16, [x0, #24]
    4e181e01  mov v1.d[1], x16

    2d000801  stp s1, s2, [x0]
    1e260030  fmov w16, s1
    b9000010  str w16, [x0]
    1e260050  fmov w16, s2
    b9000410  str w16, [x0, #4]

    6dbf0801  stp d1, d2, [x0, #-16]!
    d1004000  sub x0, x0, #16
    9e660030  fmov x16, d1
    f9000010  str x16, [x0]
    9e660050  fmov x16, d2
    f9000410  str x16, [x0, #8]

    ac810801  stp q1, q2, [x0], #32
    {STORE_Q1_Q2}
    91008000  add x0, x0, #32

    ac000801  stnp q1, q2, [x0]
    {STORE_Q1_Q2}

    2d400801  ldp s1, s2, [x0]
    b9400010  ldr w16, [x0]
    1e270201  fmov s1, w16
    b9400410  ldr w16, [x0, #4]
    1e270202  fmov s2, w16

    6c400801  ldnp d1, d2, [x0]
    f9400010  ldr x16, [x0]
    9e670201  fmov d1, x16
    f9400410  ldr x16, [x0, #8]
    9e670202  fmov d2, x16

    adc10801  ldp q1, q2, [x0, #32]!
    91008000  add x0, x0, #32
    {LOAD_Q1}
    f9400810  ldr x16, [x0, #16]
    9e670202  fmov d2, x16
    f9400c10  ldr x16, [x0, #24]
    4e181e02  mov v2.d[1], x16
"""
