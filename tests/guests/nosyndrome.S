/*
 * A guest whose accesses to devices have no syndrome: post-indexed, pair and SIMD loads and stores.
 * It prints, sets and reads the clock's registers, and ends with the sum of the identification.
 */
#define UART 0x01000000
#define RTC 0x01010000 /* MR at 4, LR at 8; identification bytes in words from 0xfe0 on */
#define EXIT 0x01030000

	.globl _start
_start:
	mov	x0, #3 << 20
	msr	cpacr_el1, x0
	isb

	/* A byte to the transmitter, the next to the scratch register, and back. */
	ldr	x0, =UART
	adr	x2, text
1:	ldrb	w1, [x2], #1
	cbz	w1, 2f
	strb	w1, [x0], #7
	strb	w1, [x0], #-7
	b	1b

	/* MR and LR, written as a pair and as SIMD registers, are read back. */
2:	ldr	x3, =RTC
	mov	w4, #0x1111
	mov	w5, #0x2222
	stp	w4, w5, [x3, #4]
	ldp	w6, w7, [x3, #4]!
	cmp	w6, w4
	ccmp	w7, w5, #0, eq
	b.ne	fail
	movi	v1.4s, #0x33
	movi	v2.4s, #0x44
	stp	s1, s2, [x3], #4
	ldur	s3, [x3, #-4]
	ldr	s4, [x3], #-8
	fmov	w6, s3
	fmov	w7, s4
	cmp	w6, #0x33
	mov	w8, #0x44
	ccmp	w7, w8, #0, eq
	b.ne	fail

	/* The part number: 0x31, and 0 of the next byte's low half. */
	add	x3, x3, #0xfe0
	ldpsw	x4, x5, [x3], #8
	and	w5, w5, #0xf
	add	w1, w4, w5
	b	done
fail:	mov	w1, #1
done:	ldr	x0, =EXIT
	str	w1, [x0], #4
	b	.
text:	.asciz	"without a syndrome\n"
