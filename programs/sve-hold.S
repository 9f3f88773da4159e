/*
 * Load Z, P and FFR, wait, and store them, without a system call, which would discard all of Z beyond
 * 128 bits.  Source: Linux, Documentation/arch/arm64/sve.rst, section 4.
 *
 * Every address is absolute: an offset in vector lengths would change with the length.
 */

#include "sve-hold.h"

	.arch	armv8-a+sve
	.altmacro

	.macro	one insn, reg, number, step
	\insn	\reg\number, [x1]
	add	x1, x1, #\step
	.endm

	.macro	all insn, reg, count, offset, step
	mov	x1, #\offset
	add	x1, x0, x1
	.set	n, 0
	.rept	\count
	one	\insn, \reg, %n, \step
	.set	n, n + 1
	.endr
	.endm

	.macro	field name, offset
	mov	\name, #\offset
	add	\name, x0, \name
	.endm

	.text
	.global	sve_hold
	.type	sve_hold, %function
sve_hold:
	stp	d8, d9, [sp, #-64]!
	stp	d10, d11, [sp, #16]
	stp	d12, d13, [sp, #32]
	stp	d14, d15, [sp, #48]

	field	x2, HOLD_STATE
	field	x3, HOLD_GATE
	mov	w4, #STATE_AT_GATE
	stlr	w4, [x2]
1:	ldar	w4, [x3]
	cbnz	w4, 1b

	all	ldr, z, Z_COUNT, HOLD_IN_Z, MAX_VL
	field	x1, HOLD_IN_FFR
	ldr	p0, [x1]
	wrffr	p0.b
	all	ldr, p, P_COUNT, HOLD_IN_P, MAX_PL
	mov	w4, #STATE_HOLDING
	stlr	w4, [x2]

	field	x5, HOLD_TICKS
	ldr	x5, [x5]
	isb
	mrs	x6, cntvct_el0
	add	x5, x5, x6			/* until then */
	rdvl	x7, #1				/* the shortest so far */
	mov	x8, x7				/* and the longest */
	mov	x9, #0
2:	rdvl	x6, #1
	cmp	x6, x7
	csel	x7, x6, x7, lo
	cmp	x6, x8
	csel	x8, x6, x8, hi
	add	x9, x9, #1
	isb
	mrs	x6, cntvct_el0
	cmp	x6, x5
	b.lo	2b

	all	str, z, Z_COUNT, HOLD_OUT_Z, MAX_VL
	all	str, p, P_COUNT, HOLD_OUT_P, MAX_PL
	rdffr	p0.b
	field	x1, HOLD_OUT_FFR
	str	p0, [x1]
	field	x1, HOLD_VL_MIN
	stp	x7, x8, [x1]			/* VL_MIN, VL_MAX */
	str	x9, [x1, #(HOLD_LOOPS - HOLD_VL_MIN)]

	ldp	d10, d11, [sp, #16]
	ldp	d12, d13, [sp, #32]
	ldp	d14, d15, [sp, #48]
	ldp	d8, d9, [sp], #64
	ret
	.size	sve_hold, . - sve_hold

	.global	sve_rdvl
	.type	sve_rdvl, %function
sve_rdvl:
	rdvl	x0, #1
	ret
	.size	sve_rdvl, . - sve_rdvl

	.section .note.GNU-stack, "", %progbits
