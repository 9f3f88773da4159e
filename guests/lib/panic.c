/* The end of the VM, after a message or without one. */

#include "panic.h"
#include "print.h"

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
