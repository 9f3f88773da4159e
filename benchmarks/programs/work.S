/*
 * A known number of instructions between two newlines, which this guest prints by stores to UART, to
 * check the counter.  Then it loops for ever.
 */
	.section .text.start, "ax"
	.globl _start
_start:
	movz	x0, #(UART >> 16), lsl #16
	mov	w1, #10
	strb	w1, [x0]
	movz	x2, #(WORK / 2 & 0xffff)
	movk	x2, #(WORK / 2 >> 16), lsl #16
1:	subs	x2, x2, #1
	b.ne	1b
	strb	w1, [x0]
2:	wfi
	b	2b
