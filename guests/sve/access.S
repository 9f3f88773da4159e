/*
 * Loads and stores of single SVE registers by number.  All other code is compiled for the general
 * registers only, so Z, P and FFR keep their content from a load here to a store here.
 */

	.arch	armv8-a+sve

/* A function of a register's number (x0) and its buffer (x1): one instruction for each number. */
	.macro	by_number name, insn, reg, count
	.global	\name
\name:
	adr	x2, 1f
	add	x2, x2, x0, lsl #3
	br	x2
1:
	.set	n, 0
	.rept	\count
	access	\insn, \reg, %n
	ret
	.set	n, n + 1
	.endr
	.endm

	.altmacro
	.macro	access insn, reg, number
	\insn	\reg\number, [x1]
	.endm

	.text
	by_number sve_load_z, ldr, z, 32
	by_number sve_store_z, str, z, 32
	by_number sve_load_p, ldr, p, 16
	by_number sve_store_p, str, p, 16

/* FFR is accessible only through a predicate: P0, which the buffer at x2 saves and restores. */
	.global	sve_load_ffr_keeping_p0
sve_load_ffr_keeping_p0:
	str	p0, [x2]
	ldr	p0, [x1]
	wrffr	p0.b
	ldr	p0, [x2]
	ret

	.global	sve_store_ffr_keeping_p0
sve_store_ffr_keeping_p0:
	str	p0, [x2]
	rdffr	p0.b
	str	p0, [x1]
	ldr	p0, [x2]
	ret

/* The vector length in bytes. */
	.global	sve_rdvl
sve_rdvl:
	rdvl	x0, #1
	ret
