/* From start.S to main() and from there, or from an exception, to the exit register. */

#include "guest.h"

void boot_main(const void *dtb);
void exception_main(unsigned int vector);

void boot_main(const void *dtb)
{
	smp_init_cpu();
	uart_init();
	fdt_init(dtb);
	exit_vm(main());
}

void exit_vm(uint32_t code)
{
	writel(code, EXIT_BASE);
	for (;;)
		wfi();
}

void panic(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print_unlocked(format, args);
	va_end(args);
	exit_vm(1);
}

static const char *vector_name(unsigned int vector)
{
	static const char *const names[] = {"exception", "IRQ", "FIQ", "SError"};

	return names[vector / 0x80 % ARRAY_SIZE(names)];
}

void exception_main(unsigned int vector)
{
	static bool entered;
	uint64_t esr = read_sysreg(ESR_EL1);

	if (__atomic_exchange_n(&entered, true, __ATOMIC_RELAXED))
		exit_vm(1);		/* reporting it failed, or another vCPU is at it */
	panic("vCPU %u: unexpected %s: ESR_EL1=0x%lx (EC=0x%lx) ELR_EL1=0x%lx FAR_EL1=0x%lx\n",
	      cpu_index(), vector_name(vector), esr, esr >> 26 & 0x3f, read_sysreg(ELR_EL1),
	      read_sysreg(FAR_EL1));
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	char *t = to;
	const char *f = from;

	while (size--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	char *t = to;

	while (size--)
		*t++ = byte;
	return to;
}
