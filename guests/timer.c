/* timer: the virtual timer interrupts a WFI through the GIC, on time, never early, never twice. */

#include "guest.h"

#define TICKS			10
#define TICK_MS			10
#define CNTV_CTL_ENABLE		(1 << 0)
#define CNTV_CTL_ISTATUS	(1 << 2)

static uint64_t period;
static uint64_t last;				/* time of the latest tick */
static uint32_t ticks;

static void set_timer(uint64_t compare)
{
	write_sysreg(compare, CNTV_CVAL_EL0);
	write_sysreg(CNTV_CTL_ENABLE, CNTV_CTL_EL0);
	isb();
}

void irq(uint32_t intid)
{
	uint64_t compare = read_sysreg(CNTV_CVAL_EL0);

	last = counter();
	if (intid != virtual_timer_intid())
		panic("tick %u: spurious interrupt %u\n", ticks, intid);
	if (ticks == TICKS)
		panic("an interrupt after the timer was stopped\n");
	if (last < compare)
		panic("tick %u: early by %lu counts\n", ticks, compare - last);
	if (!(read_sysreg(CNTV_CTL_EL0) & CNTV_CTL_ISTATUS))
		panic("tick %u: an interrupt, but CNTV_CTL_EL0.ISTATUS is clear\n", ticks);
	if (++ticks < TICKS)
		set_timer(compare + period);
	else
		write_sysreg(0, CNTV_CTL_EL0);
}

/* Interrupts are masked except while they are taken; WFI also wakes for a masked one. */
static void take_interrupts(void)
{
	irq_enable();
	isb();
	irq_disable();
}

int main(void)
{
	uint64_t frequency = read_sysreg(CNTFRQ_EL0);
	uint64_t start = counter();
	uint64_t us;

	period = frequency * TICK_MS / 1000;
	gic_init();
	gic_init_cpu();
	gic_enable(virtual_timer_intid());

	start = counter();
	set_timer(start + period);
	while (ticks < TICKS) {
		wfi();
		take_interrupts();
	}

	/* A stopped timer stays silent: irq() panics if it does not. */
	for (uint64_t stopped = counter(); counter() - stopped < 2 * period;)
		take_interrupts();

	us = (last - start) * 1000000 / frequency;
	print("%u ticks of %u ms in %lu.%03lu ms: %lu counts at %lu Hz\n", ticks, TICK_MS,
	      us / 1000, us % 1000, last - start, frequency);
	return 0;
}
