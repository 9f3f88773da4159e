/* This guest prints a newline first, by a store to UART; then it loops for ever. */
	.section .text.start, "ax"
	.globl _start
_start:
#ifdef LINUX_HEADER
	/* Linux, Documentation/arch/arm64/booting.rst */
	b	begin
	.long	0
	.quad	0x80000		/* text_offset */
	.quad	0x1000		/* image_size */
	.quad	0xa		/* flags: little endian, 4 KiB pages, anywhere */
	.quad	0, 0, 0
	.ascii	"ARM\x64"
	.long	0
begin:
#endif
	movz	x0, #(UART >> 16), lsl #16
	mov	w1, #10
	strb	w1, [x0]
1:	wfi
	b	1b
