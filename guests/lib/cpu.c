/* What every vCPU sets for itself, and how many there are. */

#include "cpu.h"
#include "psci.h"

/* 65536 counts: a WFE ends after about a millisecond, even without an event. */
#define CNTKCTL_EVNTEN		(1 << 2)
#define CNTKCTL_EVNTI(bit)	((bit) << 4)

void cpu_init(void)
{
	uint64_t events = CNTKCTL_EVNTEN | CNTKCTL_EVNTI(15);

	if (cpu_has_el1_names())
		write_sysreg(events, CNTKCTL_EL1);
	else
		write_sysreg(events, CNTHCTL_EL2);	/* the same bits */
}

unsigned int cpu_count(void)
{
	static unsigned int known;
	unsigned int count = known;

	if (!count) {
		while (count < MAX_CPUS &&
		       psci_affinity_info(cpu_mpidr(count)) != PSCI_INVALID_PARAMETERS)
			count++;
		known = count;
	}
	return count;
}
