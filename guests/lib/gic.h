/* GICv3: every interrupt in group 1, one priority. */
#pragma once

#include "cpu.h"

#define PPI(n)			(16 + (n))
#define SPI(n)			(32 + (n))

/* With VHE the virtual timer's registers are those of EL2's own virtual timer. */
static inline uint32_t virtual_timer_intid(void)
{
	return PPI(cpu_is_at_el2() && cpu_has_el1_names() ? PPI_TIMER_HYP_VIRT : PPI_TIMER_VIRT);
}

void gic_init(void);				/* once, before gic_init_cpu() of any vCPU */
void gic_init_cpu(void);			/* on every vCPU that takes interrupts */
void gic_enable(uint32_t intid);		/* a PPI or SGI: for the calling vCPU */
void gic_set_edge(uint32_t intid);		/* an SPI, level-triggered otherwise; not enabled yet */
void gic_send_sgi(uint32_t intid, unsigned int index);
void gic_send_sgi_to_others(uint32_t intid);

/* A guest's own handler.  INTIDs from 1020 up are the GIC's special ones.  The default panics. */
void irq(uint32_t intid);
