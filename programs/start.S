/* The entry of a program: start() gets the stack, which begins with argc. */

	.global	_start
_start:
	mov	x0, sp
	and	sp, x0, #-16
	bl	start
	b	.

	.section .note.GNU-stack, "", %progbits
