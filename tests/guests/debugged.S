/*
 * A guest for debuggers. It sets the Z registers and stores them, counts in a variable, changes its
 * vector length, and ends with lane 0 of Z1 as its exit code. The second vCPU counts in X1.
 */
#define ZCR_EL1		S3_0_C1_C2_0
#define EXIT		0x1030000
#define CPU_ON		0xc4000003
#define COUNT		400

	.arch	armv8.2-a+sve
	.macro	length quadwords
	mov	x3, #\quadwords - 1
	msr	ZCR_EL1, x3
	isb
	.endm

	.text
	.globl	_start
_start:
	movz	x3, #0x33, lsl #16
	msr	cpacr_el1, x3
	length	16
	adr	x9, vectors
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	mov	w4, #\n * 1000
	index	z\n\().s, w4, #3
	str	z\n, [x9, #\n, mul vl]
	.endr
	.globl	stored
stored:
	ldr	x0, =CPU_ON
	mov	x1, #1
	adr	x2, second
	hvc	#0
	mov	x1, #0
	adr	x10, variable
	.globl	loop
loop:
	add	x1, x1, #1
	str	x1, [x10]
	cmp	x1, #COUNT
	b.ne	loop
	.globl	looped
looped:
	length	4
	.globl	shorter
shorter:
	length	1
	.globl	shortest
shortest:
	umov	x5, v1.d[0]
	movz	x2, #EXIT >> 16, lsl #16
	str	w5, [x2]
	b	.

	.globl	second
second:
	add	x1, x1, #1
	b	second

	.data
	.balign	256
	.globl	vectors, variable
vectors:
	.space	32 * 256
variable:
	.quad	0
