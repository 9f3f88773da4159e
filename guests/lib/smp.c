/* Start of the other vCPUs, and waiting for them. */

#include "cpu.h"
#include "psci.h"
#include "smp.h"

#define WAIT_S			60		/* 512 vCPUs may share two emulated CPUs */

void secondary_entry(void);			/* start.S: calls what its context begins with */

static struct secondary {
	void (*main)(struct secondary *);	/* first: start.S loads it */
	void (*function)(uint64_t);
	uint64_t context;
} secondaries[MAX_CPUS];

static void secondary_main(struct secondary *self)
{
	cpu_init();
	self->function(self->context);
	psci_cpu_off();
}

long cpu_on(unsigned int index, void (*function)(uint64_t), uint64_t context)
{
	struct secondary *secondary = &secondaries[index];

	*secondary = (struct secondary){secondary_main, function, context};
	dsb();
	return psci_cpu_on(cpu_mpidr(index), secondary_entry, (uintptr_t)secondary);
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
