/* What every vCPU sets for itself, and how many there are. */

#include "cpu.h"
#include "psci.h"

/* 65536 counts: a WFE ends after about a millisecond, even without an event. */
#define CNTKCTL_EVNTEN		(1 << 2)
#define CNTKCTL_EVNTI(bit)	((bit) << 4)

void cpu_init(void)
{
	write_sysreg(CNTKCTL_EVNTEN | CNTKCTL_EVNTI(15), CNTKCTL_EL1);
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
