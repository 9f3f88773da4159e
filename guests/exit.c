/* exit: reads the command line, and ends in every way that a guest can end, or does not end. */

#include "guest.h"

/*
 * -p exit=N         end with code N (0 without a parameter)
 * -p spin           never end: wait for interrupts that never come
 * -p spin=busy      never end: an endless loop without exits to the host
 * -p undef          an undefined instruction: reported, code 1
 * -p read=ADDRESS   print the word there: 0 without a device, a data abort if nothing is mapped
 * -p reset          PSCI SYSTEM_RESET
 * -p flood=BYTES    print so many bytes, in lines of 64 that begin with their offset
 */

static _Noreturn void spin(void)
{
	bool busy = param_is("spin", "busy");

	print("spinning\n");
	irq_disable();
	while (busy)
		;
	for (;;)
		wfi();
}

static void flood(uint64_t size)
{
	enum { LINE = 64 };
	char line[LINE + 1];

	for (uint64_t at = 0; at < size; at += LINE) {
		format_text(line, sizeof(line), "%015lu %047d\n", at, 0);
		uart_write(line, size - at < LINE ? size - at : LINE);
	}
}

int main(void)
{
	if (param("spin"))
		spin();
	if (param("undef"))
		asm volatile("udf #0");
	if (param("read"))
		print("0x%08x\n", readl(param_number("read")));
	if (param("reset"))
		psci_system_reset();
	if (param("flood"))
		flood(param_number("flood"));
	return param("exit") ? param_number("exit") : 0;
}
