/* smp: starts, queries and stops every vCPU by PSCI, and sends SGIs to each through the GIC. */

#include "guest.h"

#define CONTEXT(i)		(0xfeedface00000000 | (i))
#define AGAIN			(1ull << 16)	/* in the context of a second start */
#define SGI_PING		1		/* count it */
#define SGI_OFF			2		/* leave by PSCI CPU_OFF */
#define NOBODY			(1ull << 24)	/* an affinity that no vCPU has */

static struct cpu {
	uint64_t mpidr;
	uint64_t context;
	uint32_t up;				/* how many times it was started */
	uint32_t pings;
} cpus[MAX_CPUS];

static volatile bool leave[MAX_CPUS];

void irq(uint32_t intid)
{
	unsigned int me = cpu_index();

	if (intid == SGI_PING)
		__atomic_add_fetch(&cpus[me].pings, 1, __ATOMIC_RELEASE);
	else if (intid == SGI_OFF)
		leave[me] = true;
	else
		panic("vCPU %u: spurious interrupt %u\n", me, intid);
	sev();
}

static void secondary(uint64_t context)
{
	unsigned int me = cpu_index();

	leave[me] = false;
	gic_init_cpu();
	gic_enable(SGI_PING);
	gic_enable(SGI_OFF);
	cpus[me].mpidr = read_sysreg(MPIDR_EL1);
	cpus[me].context = context;
	__atomic_add_fetch(&cpus[me].up, 1, __ATOMIC_RELEASE);
	sev();
	while (!leave[me]) {
		wfi();
		irq_enable();
		isb();
		irq_disable();
	}
}

static void expect(unsigned int i, const char *what, long got, long want)
{
	if (got != want)
		panic("vCPU %u: %s is %ld, not %ld\n", i, what, got, want);
}

static void start(unsigned int i, uint64_t context)
{
	uint32_t starts = cpus[i].up + 1;

	expect(i, "AFFINITY_INFO before CPU_ON", psci_affinity_info(cpu_mpidr(i)), AFFINITY_OFF);
	expect(i, "CPU_ON", cpu_on(i, secondary, context), PSCI_SUCCESS);
	if (!wait_for(&cpus[i].up, starts))
		panic("vCPU %u: was started but never came up\n", i);
	expect(i, "AFFINITY_INFO after CPU_ON", psci_affinity_info(cpu_mpidr(i)), AFFINITY_ON);
	if (cpus[i].context != context)
		panic("vCPU %u: context id 0x%lx, not 0x%lx\n", i, cpus[i].context, context);
}

static void report(unsigned int i, uint64_t mpidr)
{
	/* bit 31 is RES1; U (30) and MT (24) do not identify the vCPU */
	uint64_t affinity = mpidr & 0xff00ffffff;

	if (affinity != cpu_mpidr(i))
		panic("vCPU %u: MPIDR_EL1 0x%lx, expected affinity 0x%lx\n", i, mpidr,
		      cpu_mpidr(i));
	print("vCPU %u: MPIDR 0x%lx up\n", i, mpidr);
}

static void expect_pings(unsigned int i, uint32_t pings)
{
	if (i == cpu_index()) {
		irq_enable();
		isb();
		irq_disable();
	}
	if (!wait_for(&cpus[i].pings, pings))
		panic("vCPU %u: %u of %u SGIs arrived\n", i, cpus[i].pings, pings);
}

/* One SGI to each vCPU alone, then one to all but vCPU 0: no vCPU may get another's. */
static void check_sgis(unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		gic_send_sgi(SGI_PING, i);
		expect_pings(i, 1);
	}
	gic_send_sgi_to_others(SGI_PING);
	for (unsigned int i = 1; i < count; i++)
		expect_pings(i, 2);
	expect_pings(0, 1);
}

static void check_errors(unsigned int count)
{
	expect(0, "CPU_ON of a running vCPU", cpu_on(count - 1, secondary, 0), PSCI_ALREADY_ON);
	expect(0, "CPU_ON of nobody", psci_cpu_on(NOBODY, NULL, 0), PSCI_INVALID_PARAMETERS);
	expect(0, "AFFINITY_INFO of nobody", psci_affinity_info(NOBODY),
	       PSCI_INVALID_PARAMETERS);
}

static void check_off_and_on(unsigned int i)
{
	gic_send_sgi(SGI_OFF, i);
	if (!wait_for_off(i))
		panic("vCPU %u: still on after CPU_OFF\n", i);
	start(i, CONTEXT(i) | AGAIN);
	gic_send_sgi(SGI_PING, i);
	expect_pings(i, 3);
	print("vCPU %u: off and up again\n", i);
}

int main(void)
{
	unsigned int count = cpu_count();

	if (fdt_count_cpus() != count)
		panic("%u vCPUs, but %u in the device tree\n", count, fdt_count_cpus());
	gic_init();
	gic_init_cpu();
	gic_enable(SGI_PING);

	report(0, read_sysreg(MPIDR_EL1));
	for (unsigned int i = 1; i < count; i++) {
		start(i, CONTEXT(i));
		report(i, cpus[i].mpidr);
	}
	check_sgis(count);
	check_errors(count);
	if (count > 1)
		check_off_and_on(count - 1);
	print("%u vCPUs\n", count);
	return 0;
}
