/* What start.S calls: the way to main(), and the report of an exception. */

#include "guest.h"

void boot_main(const void *dtb);
void exception_main(unsigned int vector);

void boot_main(const void *dtb)
{
	cpu_init();
	uart_init();
	fdt_init(dtb);
	exit_vm(main());
}

static const char *vector_name(unsigned int vector)
{
	static const char *const names[] = {"exception", "IRQ", "FIQ", "SError"};

	return names[vector / 0x80 % ARRAY_SIZE(names)];
}

void exception_main(unsigned int vector)
{
	static bool entered;
	bool el1 = cpu_has_el1_names();
	uint64_t esr = el1 ? read_sysreg(ESR_EL1) : read_sysreg(ESR_EL2);
	uint64_t elr = el1 ? read_sysreg(ELR_EL1) : read_sysreg(ELR_EL2);
	uint64_t far = el1 ? read_sysreg(FAR_EL1) : read_sysreg(FAR_EL2);

	if (__atomic_exchange_n(&entered, true, __ATOMIC_RELAXED))
		exit_vm(1);		/* reporting it failed, or another vCPU is at it */
	panic("vCPU %u: unexpected %s: ESR_EL1=0x%lx (EC=0x%lx) ELR_EL1=0x%lx FAR_EL1=0x%lx\n",
	      cpu_index(), vector_name(vector), esr, esr >> 26 & 0x3f, elr, far);
}
