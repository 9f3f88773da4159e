/*
 * A guest with pages of 64 KiB: its code is where the CPU starts it, by a block of 512 MiB, and a
 * text of another virtual address, by a page. Walks are not cached, because the tables are written
 * while the MMU is off.
 */
#define TCR_T0SZ_42	22
#define TCR_EPD1	(1 << 23)
#define TCR_TG0_64K	(1 << 14)
#define BLOCK		0x401		/* AF */
#define TABLE		0x3
#define PAGE		0x403
#define SCTLR_M		1

	.arch	armv8-a
	.text
	.globl	_start
_start:
	adrp	x0, level2
	ldr	x1, =0x80000000 + BLOCK
	str	x1, [x0, #4 * 8]		/* 0x80000000 */
	adrp	x1, level3
	add	x2, x1, #TABLE
	str	x2, [x0, #2 * 8]		/* 0x40000000 */
	adrp	x2, page
	add	x2, x2, #PAGE
	str	x2, [x1, #5 * 8]		/* 0x40050000 */
	dsb	sy
	mov	x1, #0xff			/* normal memory */
	msr	mair_el1, x1
	ldr	x1, =TCR_T0SZ_42 | TCR_TG0_64K | TCR_EPD1
	msr	tcr_el1, x1
	msr	ttbr0_el1, x0
	tlbi	vmalle1
	dsb	sy
	isb
	mrs	x1, sctlr_el1
	orr	x1, x1, #SCTLR_M
	msr	sctlr_el1, x1
	isb
	ldr	x2, =0x40058123			/* banner */
	ldrb	w3, [x2]
	.globl	mapped
mapped:
	b	mapped

	.data
	.balign	0x10000
page:
	.space	0x8123
	.globl	banner
banner:
	.asciz	"Pages of 64 KiB"
	.balign	0x10000
level2:
	.space	0x10000
level3:
	.space	0x10000
