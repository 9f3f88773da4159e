/* GICv2 as far as the guests use it: at most 8 vCPUs.  Source: Arm IHI 0048, chapter 4. */

#include "cpu.h"
#include "gicv2.h"

#define GICD_CTLR		0x000
#define GICD_TYPER		0x004
#define GICD_ISENABLER		0x100
#define GICD_ICENABLER		0x180
#define GICD_IPRIORITYR		0x400
#define GICD_ITARGETSR		0x800		/* a byte an INTID, a bit a CPU */
#define GICD_SGIR		0xf00
#define GICD_SGIR_OTHERS	(1u << 24)

#define GICC_CTLR		0x00
#define GICC_PMR		0x04
#define GICC_BPR		0x08
#define GICC_IAR		0x0c		/* for an SGI with the CPU that sent it */
#define GICC_EOIR		0x10
#define GICC_IAR_INTID		0x3ff

#define ENABLE_GROUP0		1		/* every interrupt is in group 0 after a reset */
#define PRIORITIES		0xa0a0a0a0
#define PMR_ALL			0xf0

void gicv2_init(void)
{
	uint32_t intids = ((readl(GICD_BASE + GICD_TYPER) & 0x1f) + 1) * 32;

	writel(0, GICD_BASE + GICD_CTLR);
	for (uint32_t i = 32; i < intids; i += 32)
		writel(~0u, GICD_BASE + GICD_ICENABLER + i / 8);
	for (uint32_t i = 32; i < intids; i += 4)
		writel(PRIORITIES, GICD_BASE + GICD_IPRIORITYR + i);
	writel(ENABLE_GROUP0, GICD_BASE + GICD_CTLR);
}

void gicv2_init_cpu(void)
{
	writel(~0u, GICD_BASE + GICD_ICENABLER);	/* each CPU's own */
	for (uint32_t i = 0; i < 32; i += 4)
		writel(PRIORITIES, GICD_BASE + GICD_IPRIORITYR + i);
	writel(PMR_ALL, GICC_BASE + GICC_PMR);
	writel(0, GICC_BASE + GICC_BPR);
	writel(ENABLE_GROUP0, GICC_BASE + GICC_CTLR);
}

void gicv2_enable(uint32_t intid)
{
	uintptr_t targets = GICD_BASE + GICD_ITARGETSR + intid / 4 * 4;
	uint32_t shift = intid % 4 * 8;

	if (intid >= 32)
		writel((readl(targets) & ~(0xffu << shift)) | 1u << cpu_index() << shift, targets);
	writel(1u << intid % 32, GICD_BASE + GICD_ISENABLER + intid / 32 * 4);
}

void gicv2_send_sgi(uint32_t intid, unsigned int index)
{
	dsb();
	writel(1u << (16 + index) | intid, GICD_BASE + GICD_SGIR);
}

void gicv2_send_sgi_to_others(uint32_t intid)
{
	dsb();
	writel(GICD_SGIR_OTHERS | intid, GICD_BASE + GICD_SGIR);
}

uint32_t gicv2_acknowledge(void)
{
	return readl(GICC_BASE + GICC_IAR);
}

uint32_t gicv2_intid(uint32_t acknowledged)
{
	return acknowledged & GICC_IAR_INTID;
}

void gicv2_end(uint32_t acknowledged)
{
	writel(acknowledged, GICC_BASE + GICC_EOIR);
}
