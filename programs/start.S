/* The entry of a program: start() gets the kernel's stack, with argc and argv. */

	.global	_start
_start:
	mov	x0, sp
	and	sp, x0, #-16
	bl	start
	b	.

	.section .note.GNU-stack, "", %progbits
