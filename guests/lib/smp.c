/* vCPUs by number.  KVM's: MPIDR Aff0 = n & 0xf, Aff1 = n >> 4 & 0xff, Aff2 = n >> 12. */

#include "guest.h"

#define WAIT_S			60		/* 512 vCPUs may share two emulated CPUs */

void secondary_entry(void);			/* start.S */
void secondary_main(uint64_t context);

/* 65536 counts: a WFE ends after a millisecond or so even if nobody sends an event. */
#define CNTKCTL_EVNTEN		(1 << 2)
#define CNTKCTL_EVNTI(bit)	((bit) << 4)

static void (*functions[MAX_CPUS])(uint64_t);

void smp_init_cpu(void)
{
	write_sysreg(CNTKCTL_EVNTEN | CNTKCTL_EVNTI(15), CNTKCTL_EL1);
}

unsigned int cpu_index(void)
{
	return read_sysreg(TPIDR_EL1);		/* set by start.S */
}

uint64_t cpu_mpidr(unsigned int index)
{
	return (index & 0xf) | (index >> 4 & 0xff) << 8 | index >> 12 << 16;
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

long cpu_on(unsigned int index, void (*function)(uint64_t), uint64_t context)
{
	functions[index] = function;
	dsb();
	return psci_cpu_on(cpu_mpidr(index), secondary_entry, context);
}

void secondary_main(uint64_t context)
{
	smp_init_cpu();
	functions[cpu_index()](context);
	psci_cpu_off();
}

static bool in_time(uint64_t start)
{
	return counter() - start < WAIT_S * read_sysreg(CNTFRQ_EL0);
}

bool wait_for(const uint32_t *word, uint32_t value)
{
	uint64_t start = counter();

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) {
		if (!in_time(start))
			return false;
		wfe();
	}
	return true;
}

bool wait_for_off(unsigned int index)
{
	uint64_t start = counter();

	while (psci_affinity_info(cpu_mpidr(index)) != AFFINITY_OFF) {
		if (!in_time(start))
			return false;
		wfe();
	}
	return true;
}
