// Fills Z0-Z31, P0-P15 and FFR at the longest vector length, every lane with something else, says
// so on the UART, and stays where it is.
	.arch	armv8-a+sve
	.text
	.globl	_start
_start:
	mov	x0, #0x330000			// CPACR_EL1: FP, SIMD and SVE do not trap
	msr	cpacr_el1, x0
	isb
	mov	x0, #15				// ZCR_EL1.LEN: as long as there is
	msr	zcr_el1, x0
	isb

	// 12 KiB of noise: x -> x * 6364136223846793005 + 1442695040888963407 (Knuth's MMIX)
	adrp	x1, noise
	add	x1, x1, :lo12:noise
	add	x2, x1, #0x3000
	ldr	x3, =6364136223846793005
	ldr	x4, =1442695040888963407
	mov	x5, x4
1:	madd	x5, x5, x3, x4
	ror	x6, x5, #29
	str	x6, [x1], #8
	cmp	x1, x2
	b.lo	1b

	adrp	x1, noise
	add	x1, x1, :lo12:noise
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	ldr	z\n, [x1, #\n, mul vl]
	.endr
	.irp	n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	ldr	z\n, [x1, #\n, mul vl]
	.endr
	add	x1, x1, #0x2000
	cntb	x7				// FFR: all lanes but the last three, as a load leaves it
	sub	x7, x7, #3
	whilelo	p0.b, xzr, x7
	wrffr	p0.b
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	ldr	p\n, [x1, #\n, mul vl]
	.endr
	mov	x8, #0x400000			// FPCR: rounds towards plus infinity
	msr	fpcr, x8

	mov	x0, #0x1000000			// the UART
	mov	w1, #'!'
	strb	w1, [x0]
spin:	fmov	x9, d0				// a use: KVM loads its vCPU's vectors at the first
	b	loaded				// QEMU stops a CPU between blocks only
	.globl	loaded
loaded:	b	spin				// here they are in the CPU

	.bss
	.balign	4096
noise:	.skip	0x3000
