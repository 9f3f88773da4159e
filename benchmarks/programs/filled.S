/*
 * A guest that fills FILL bytes of memory with different pages, and prints a line.  Then it prints a
 * dot by a store to UART every STEP turns of a loop: after a restore its first output comes from one
 * of its first instructions.
 */
	.section .text.start, "ax"
	.globl _start
_start:
	adr	x1, _start
	add	x1, x1, #0x200000
	movz	x2, #(FILL >> 16), lsl #16
	add	x2, x2, x1
1:	mov	x3, x1
	stp	x3, x3, [x1], #16
	cmp	x1, x2
	b.lo	1b

	movz	x0, #(UART >> 16), lsl #16
	adr	x1, words
2:	ldrb	w2, [x1], #1
	cbz	w2, 3f
	strb	w2, [x0]
	b	2b
3:	mov	w1, #'.'
4:	strb	w1, [x0]
	movz	w2, #STEP
5:	subs	w2, w2, #1
	b.ne	5b
	b	4b

words:	.asciz	"filled\n"
