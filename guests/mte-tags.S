/* Memory tags: the instructions that no C compiler emits here. */

	.arch	armv8.5-a+memtag
	.text

/* Give the granule at x0 the tag of x0. */
	.global	mte_store
mte_store:
	stg	x0, [x0]
	ret

/* Return x0 with the tag of its granule. */
	.global	mte_load
mte_load:
	ldg	x0, [x0]
	ret

/*
 * Turn tags on at EL1: RAM becomes Tagged Normal memory, pointers have tags (TBI0), and a wrong
 * tag is a synchronous fault (TCF).
 * Source: Arm DDI 0487, D23 (MAIR_EL1, TCR_EL1.TBI0, SCTLR_EL1.ATA, SCTLR_EL1.TCF).
 */
	.global	mte_enable
mte_enable:
	mov	x0, #0xf000		/* attribute 1: Tagged Normal; 0: Device-nGnRnE */
	msr	mair_el1, x0
	mrs	x0, tcr_el1
	orr	x0, x0, #(1 << 37)
	msr	tcr_el1, x0
	mrs	x0, sctlr_el1
	orr	x0, x0, #(1 << 43)
	orr	x0, x0, #(1 << 40)
	msr	sctlr_el1, x0
	isb
	tlbi	vmalle1
	dsb	nsh
	isb
	ret

/* Return whether a load through x0 faults; the handler of the guest continues behind it. */
	.global	mte_faults
mte_faults:
	adrp	x1, vectors_mte
	add	x1, x1, :lo12:vectors_mte
	mrs	x2, vbar_el1
	msr	vbar_el1, x1
	isb
	mov	x3, #0
	ldr	x4, [x0]
	dsb	sy
	isb
	msr	vbar_el1, x2
	isb
	mov	x0, x3
	ret

/* A fault of that load: x3 becomes ESR_EL1, and the next instruction runs. */
	.balign	0x800
vectors_mte:
	.skip	0x200
	mrs	x3, esr_el1
	mrs	x5, elr_el1
	add	x5, x5, #4
	msr	elr_el1, x5
	eret
	.balign	0x800
