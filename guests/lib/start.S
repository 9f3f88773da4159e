/* Entry of every vCPU, and the exception vectors. */

#include "common.h"

/*
 * An identity map in a table of four 1 GiB blocks (T0SZ=32 starts at level 1): devices in the
 * first, RAM in the one at RAM_BASE.  It is constant, and nothing is written before the caches
 * are on, so that no write can hide behind a stale line.
 * Source: Arm DDI 0487, D8.3 (descriptors), D23 (MAIR_EL1, TCR_EL1, SCTLR_EL1).
 */
#define BLOCK		(1 << 0)
#define ATTR_DEVICE	(0 << 2)		/* index into MAIR_EL1 */
#define ATTR_NORMAL	(1 << 2)
#define INNER_SHAREABLE	(3 << 8)
#define AF		(1 << 10)
#define PXN		(1 << 53)
#define UXN		(1 << 54)		/* at EL2 without VHE: XN */
#define AP_RES1		(1 << 6)		/* at EL2 without VHE, where there is no EL0 */

#define MAIR		0xff00			/* 0: Device-nGnRnE, 1: Normal, write-back */

/* T0SZ=T1SZ=32, write-back inner shareable walks, no TTBR1 walks, 4 KiB granules, 32-bit IPA */
#define TCR		(32 | 1 << 8 | 1 << 10 | 3 << 12 | 32 << 16 | 1 << 23 | 2 << 30)

/* The bits that are RES1 in Armv8.0, SA, and the three switches: M, C, I */
#define SCTLR_SWITCHES	(1 << 3 | 1 << 0 | 1 << 2 | 1 << 12)
#define SCTLR		(0x30d00800 | SCTLR_SWITCHES)

/*
 * EL2 with VHE: the names of EL1's registers mean EL2's own, and the code is the same as for EL1.
 * EL2 without VHE: other names and layouts, and interrupts come by IMO, FMO and AMO.
 * Source: Arm DDI 0487, D23 (HCR_EL2, TCR_EL2, SCTLR_EL2).
 */
#define HCR_VHE		(1 << 34 | 1 << 31 | 1 << 27)		/* E2H, RW, TGE */
#define HCR_NVHE	(1 << 31 | 1 << 5 | 1 << 4 | 1 << 3)	/* RW, AMO, IMO, FMO */
#define TCR_NVHE	(32 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 31)
#define SCTLR_NVHE	(0x30c50830 | SCTLR_SWITCHES)

	.section .text.entry, "ax"

/* The boot vCPU: x0 holds the device tree's address. */
	.global	_start
_start:
	mov	x19, x0
	bl	enable_mmu
	adrp	x0, __bss_start
	add	x0, x0, :lo12:__bss_start
	adrp	x1, __bss_end
	add	x1, x1, :lo12:__bss_end
1:	cmp	x0, x1
	b.hs	2f
	stp	xzr, xzr, [x0], #16
	b	1b
2:	bl	set_stack
	mov	x0, x19
	b	boot_main

/* A vCPU started by PSCI CPU_ON: x0, its context id, is the address of what to call with x0. */
	.global	secondary_entry
secondary_entry:
	mov	x19, x0
	bl	enable_mmu
	bl	set_stack
	mov	x0, x19
	ldr	x1, [x0]
	br	x1

enable_mmu:
	mrs	x9, CurrentEL
	cmp	x9, #(2 << 2)
	b.ne	enable_mmu_el1
	mrs	x9, id_aa64mmfr1_el1
	ubfx	x9, x9, #8, #4			/* VH */
	cbz	x9, enable_mmu_nvhe
	mov	x9, #(HCR_VHE & 0xffff0000)
	movk	x9, #(HCR_VHE >> 32), lsl #32
	msr	hcr_el2, x9
	isb
enable_mmu_el1:
	adrp	x9, vectors
	add	x9, x9, :lo12:vectors
	msr	vbar_el1, x9
	mov	x9, #MAIR
	msr	mair_el1, x9
	mov	x9, #(TCR & 0xffff)
	movk	x9, #(TCR >> 16), lsl #16
	msr	tcr_el1, x9
	adrp	x9, translation_table
	add	x9, x9, :lo12:translation_table
	msr	ttbr0_el1, x9
	isb
	tlbi	vmalle1
	ic	iallu
	dsb	nsh
	isb
	mov	x9, #(SCTLR & 0xffff)
	movk	x9, #(SCTLR >> 16), lsl #16
	msr	sctlr_el1, x9
	isb
	ret

enable_mmu_nvhe:
	mov	x9, #(HCR_NVHE & 0xffff)
	movk	x9, #(HCR_NVHE >> 16), lsl #16
	msr	hcr_el2, x9
	adrp	x9, vectors_nvhe
	add	x9, x9, :lo12:vectors_nvhe
	msr	vbar_el2, x9
	mov	x9, #MAIR
	msr	mair_el2, x9
	mov	x9, #(TCR_NVHE & 0xffff)
	movk	x9, #(TCR_NVHE >> 16), lsl #16
	msr	tcr_el2, x9
	adrp	x9, translation_table_nvhe
	add	x9, x9, :lo12:translation_table_nvhe
	msr	ttbr0_el2, x9
	isb
	tlbi	alle2
	ic	iallu
	dsb	nsh
	isb
	mov	x9, #(SCTLR_NVHE & 0xffff)
	movk	x9, #(SCTLR_NVHE >> 16), lsl #16
	msr	sctlr_el2, x9
	isb
	ret

/* This vCPU's number, from Aff2.Aff1.Aff0 as KVM assigns them, into TPIDR_EL1; sp by it. */
set_stack:
	mrs	x9, mpidr_el1
	and	x10, x9, #0xf
	ubfx	x11, x9, #8, #8
	orr	x10, x10, x11, lsl #4
	ubfx	x11, x9, #16, #8
	orr	x10, x10, x11, lsl #12
	msr	tpidr_el1, x10
	adrp	x9, stacks + STACK_SIZE
	add	x9, x9, :lo12:stacks + STACK_SIZE
	mov	x11, #STACK_SIZE
	madd	x9, x10, x11, x9
	mov	sp, x9
	ret

	.macro	fatal table
	.balign	0x80
	mov	x20, #(. - \table)
	b	fatal_exception
	.endm

	.macro	table name, irq
	.balign	0x800
\name:
	.rept	5			/* from SP_EL0, and a synchronous one from this EL */
	fatal	\name
	.endr
	.balign	0x80
	b	\irq
	.rept	10			/* FIQ and SError from this EL, everything from EL0 */
	fatal	\name
	.endr
	.endm

	table	vectors, irq_exception
	table	vectors_nvhe, irq_exception_nvhe

/* No way back: the registers are given up, and the stack too, which may be the cause. */
fatal_exception:
	bl	set_stack
	mov	x0, x20
	b	exception_main

	.macro	take_irq name, el
\name:
	sub	sp, sp, #192
	stp	x0, x1, [sp, #0]
	stp	x2, x3, [sp, #16]
	stp	x4, x5, [sp, #32]
	stp	x6, x7, [sp, #48]
	stp	x8, x9, [sp, #64]
	stp	x10, x11, [sp, #80]
	stp	x12, x13, [sp, #96]
	stp	x14, x15, [sp, #112]
	stp	x16, x17, [sp, #128]
	stp	x18, x29, [sp, #144]
	mrs	x0, elr_\el
	mrs	x1, spsr_\el
	stp	x30, x0, [sp, #160]
	str	x1, [sp, #176]
	bl	irq_main
	ldp	x30, x0, [sp, #160]
	ldr	x1, [sp, #176]
	msr	elr_\el, x0
	msr	spsr_\el, x1
	ldp	x0, x1, [sp, #0]
	ldp	x2, x3, [sp, #16]
	ldp	x4, x5, [sp, #32]
	ldp	x6, x7, [sp, #48]
	ldp	x8, x9, [sp, #64]
	ldp	x10, x11, [sp, #80]
	ldp	x12, x13, [sp, #96]
	ldp	x14, x15, [sp, #112]
	ldp	x16, x17, [sp, #128]
	ldp	x18, x29, [sp, #144]
	add	sp, sp, #192
	eret
	.endm

	take_irq irq_exception, el1
	take_irq irq_exception_nvhe, el2

	.section .rodata
	.macro	blocks name, device, ram
	.balign	64
\name:
	.quad	BLOCK | ATTR_DEVICE | AF | \device
	.fill	(RAM_BASE >> 30) - 1, 8, 0
	.quad	RAM_BASE | BLOCK | ATTR_NORMAL | INNER_SHAREABLE | AF | \ram
	.fill	4 - (RAM_BASE >> 30) - 1, 8, 0
	.endm

	blocks	translation_table, PXN | UXN, UXN
	blocks	translation_table_nvhe, AP_RES1 | UXN, AP_RES1

	.section .stacks, "aw", %nobits
	.balign	16
stacks:
	.skip	MAX_CPUS * STACK_SIZE
