/*
 * GICv3 as far as the guests use it, and the choice of a GICv2 on a machine that has one.
 * Source: Arm IHI 0069, chapter 12.
 */

#include "cpu.h"
#include "fdt.h"
#include "gic.h"
#include "gicv2.h"
#include "panic.h"

#define GICD_CTLR		0x0000
#define GICD_CTLR_GROUP1	(1 << 1)	/* EnableGrp1A, or EnableGrp1 with one state */
#define GICD_CTLR_ARE		(1 << 4)
#define GICD_CTLR_RWP		(1u << 31)	/* a write is not yet seen everywhere */
#define GICD_TYPER		0x0004
#define GICD_IROUTER		0x6000		/* 8 bytes an SPI, from INTID 0 */

#define GICR_CTLR		0x0000
#define GICR_CTLR_RWP		(1 << 3)
#define GICR_TYPER		0x0008
#define GICR_WAKER		0x0014
#define GICR_WAKER_SLEEP	(1 << 1)	/* ProcessorSleep */
#define GICR_WAKER_ASLEEP	(1 << 2)	/* ChildrenAsleep */
#define GICR_SGI_BASE		0x10000

/* The same in the distributor and in a redistributor's SGI_base frame, 1 or 8 bits an INTID. */
#define IGROUPR			0x0080
#define ISENABLER		0x0100
#define ICENABLER		0x0180
#define IPRIORITYR		0x0400
#define ICFGR			0x0c00		/* 2 bits an INTID */
#define ICFGR_EDGE		2u

#define PRIORITIES		0xa0a0a0a0
#define PMR_ALL			0xf0
#define ICC_SRE_SRE		(1 << 0)
#define ICC_SGI1R_IRM		(1ull << 40)	/* every vCPU but this one */
#define INTID_SPECIAL		1020

void irq_main(void);

/* This vCPU's redistributor: they end where GICR_END says, in vCPU order. */
static uintptr_t redistributor(unsigned int index)
{
	return GICR_END - (uintptr_t)(cpu_count() - index) * GICR_SIZE;
}

static void wait_while(uintptr_t address, uint32_t bit)
{
	while (readl(address) & bit)
		;
}

static void distributor_write_ctlr(uint32_t value)
{
	writel(value, GICD_BASE + GICD_CTLR);
	wait_while(GICD_BASE + GICD_CTLR, GICD_CTLR_RWP);
}

void gic_init(void)
{
	uint32_t intids = ((readl(GICD_BASE + GICD_TYPER) & 0x1f) + 1) * 32;

	if (fdt_has_gicv2()) {
		gicv2_init();
		return;
	}
	if (intids > INTID_SPECIAL)
		intids = INTID_SPECIAL;
	distributor_write_ctlr(0);
	for (uint32_t i = SPI(0); i < intids; i += 32) {
		writel(~0u, GICD_BASE + ICENABLER + i / 8);
		writel(~0u, GICD_BASE + IGROUPR + i / 8);
	}
	for (uint32_t i = SPI(0); i < intids; i += 4)
		writel(PRIORITIES, GICD_BASE + IPRIORITYR + i);
	distributor_write_ctlr(GICD_CTLR_ARE | GICD_CTLR_GROUP1);
}

static void check_affinity(uintptr_t rd, unsigned int index)
{
	uint32_t affinity = readq(rd + GICR_TYPER) >> 32;

	if (affinity != cpu_mpidr(index))
		panic("vCPU %u: the redistributor at 0x%lx is that of affinity 0x%x\n", index,
		      rd, affinity);
}

void gic_init_cpu(void)
{
	unsigned int index = cpu_index();
	uintptr_t rd;

	if (fdt_has_gicv2()) {
		gicv2_init_cpu();
		return;
	}
	rd = redistributor(index);
	check_affinity(rd, index);
	writel(readl(rd + GICR_WAKER) & ~GICR_WAKER_SLEEP, rd + GICR_WAKER);
	wait_while(rd + GICR_WAKER, GICR_WAKER_ASLEEP);

	writel(~0u, rd + GICR_SGI_BASE + ICENABLER);
	wait_while(rd + GICR_CTLR, GICR_CTLR_RWP);
	writel(~0u, rd + GICR_SGI_BASE + IGROUPR);
	for (uint32_t i = 0; i < SPI(0); i += 4)
		writel(PRIORITIES, rd + GICR_SGI_BASE + IPRIORITYR + i);

	write_sysreg(read_sysreg(ICC_SRE_EL1) | ICC_SRE_SRE, ICC_SRE_EL1);
	isb();
	write_sysreg(0, ICC_CTLR_EL1);		/* EOImode 0: EOIR drops and deactivates */
	write_sysreg(PMR_ALL, ICC_PMR_EL1);
	write_sysreg(0, ICC_BPR1_EL1);
	write_sysreg(1, ICC_IGRPEN1_EL1);
	isb();
}

void gic_enable(uint32_t intid)
{
	uintptr_t frame = GICD_BASE;

	if (fdt_has_gicv2()) {
		gicv2_enable(intid);
		return;
	}
	if (intid < SPI(0))
		frame = redistributor(cpu_index()) + GICR_SGI_BASE;
	else
		writeq(cpu_mpidr(cpu_index()), GICD_BASE + GICD_IROUTER + 8 * (uintptr_t)intid);
	writel(1u << intid % 32, frame + ISENABLER + intid / 32 * 4);
}

void gic_set_edge(uint32_t intid)
{
	uintptr_t icfgr = GICD_BASE + ICFGR + intid / 16 * 4;

	writel(readl(icfgr) | ICFGR_EDGE << intid % 16 * 2, icfgr);
}

void gic_send_sgi(uint32_t intid, unsigned int index)
{
	uint64_t mpidr = cpu_mpidr(index);
	uint64_t target = 1ull << (mpidr & 0xf);

	if (fdt_has_gicv2()) {
		gicv2_send_sgi(intid, index);
		return;
	}
	dsb();					/* what the handler will read comes first */
	write_sysreg((mpidr >> 16 & 0xff) << 32 | (uint64_t)intid << 24 |
		     (mpidr >> 8 & 0xff) << 16 | target, ICC_SGI1R_EL1);
	isb();
}

void gic_send_sgi_to_others(uint32_t intid)
{
	if (fdt_has_gicv2()) {
		gicv2_send_sgi_to_others(intid);
		return;
	}
	dsb();
	write_sysreg(ICC_SGI1R_IRM | (uint64_t)intid << 24, ICC_SGI1R_EL1);
	isb();
}

static void irq_main_v2(void)
{
	uint32_t acknowledged = gicv2_acknowledge();

	dsb();
	irq(gicv2_intid(acknowledged));
	if (gicv2_intid(acknowledged) < INTID_SPECIAL) {
		isb();
		gicv2_end(acknowledged);
	}
}

/* Called by start.S with interrupts masked. */
void irq_main(void)
{
	if (fdt_has_gicv2()) {
		irq_main_v2();
		return;
	}

	uint32_t intid = read_sysreg(ICC_IAR1_EL1) & 0xffffff;

	dsb();					/* the acknowledgement is complete */
	irq(intid);
	if (intid < INTID_SPECIAL) {
		isb();				/* a timer set anew has lowered its line */
		write_sysreg(intid, ICC_EOIR1_EL1);
		isb();
	}
}

__attribute__((weak)) void irq(uint32_t intid)
{
	panic("vCPU %u: unexpected interrupt %u\n", cpu_index(), intid);
}
