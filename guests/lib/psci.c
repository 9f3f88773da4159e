/*
 * PSCI by HVC, or by SMC where the device tree says so: at EL2, HVC is the guest's own.
 * Source: Arm DEN0022, chapter 5; the convention is that of DEN0028 (SMCCC).
 */

#include "fdt.h"
#include "panic.h"
#include "psci.h"

#define PSCI_CPU_OFF		0x84000002
#define PSCI_CPU_ON		0xc4000003
#define PSCI_AFFINITY_INFO	0xc4000004
#define PSCI_SYSTEM_OFF		0x84000008
#define PSCI_SYSTEM_RESET	0x84000009

static long psci(uint32_t function, uint64_t a, uint64_t b, uint64_t c)
{
	bool smc = fdt_psci_is_smc();		/* before x0 to x3 are set: a call may change them */
	register uint64_t x0 asm("x0") = function;
	register uint64_t x1 asm("x1") = a;
	register uint64_t x2 asm("x2") = b;
	register uint64_t x3 asm("x3") = c;

#define CALL(instruction)								\
	asm volatile(instruction " #0"							\
		     : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)				\
		     :									\
		     : "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",	\
		       "x14", "x15", "x16", "x17", "memory")

	if (smc)
		CALL("smc");
	else
		CALL("hvc");
	return x0;
}

long psci_cpu_on(uint64_t mpidr, void (*entry)(void), uint64_t context)
{
	return psci(PSCI_CPU_ON, mpidr, (uintptr_t)entry, context);
}

long psci_affinity_info(uint64_t mpidr)
{
	return psci(PSCI_AFFINITY_INFO, mpidr, 0, 0);
}

void psci_cpu_off(void)
{
	panic("PSCI CPU_OFF returned %ld\n", psci(PSCI_CPU_OFF, 0, 0, 0));
}

void psci_system_off(void)
{
	panic("PSCI SYSTEM_OFF returned %ld\n", psci(PSCI_SYSTEM_OFF, 0, 0, 0));
}

void psci_system_reset(void)
{
	panic("PSCI SYSTEM_RESET returned %ld\n", psci(PSCI_SYSTEM_RESET, 0, 0, 0));
}
