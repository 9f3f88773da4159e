/*
 * The first program of a Linux guest: it prints a line, waits, prints 64 lines and "end", and switches
 * off.  It has no libc, because a boot is measured up to its first line.  -DTYPED: before all that it
 * reads a line of input and prints "typed".
 */

static long call(long number, long a, long b, long c, long d)
{
	register long x8 asm("x8") = number;
	register long x0 asm("x0") = a;
	register long x1 asm("x1") = b;
	register long x2 asm("x2") = c;
	register long x3 asm("x3") = d;

	asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

/* Source: asm-generic/unistd.h; linux/reboot.h */
#define SYS_reboot 142
#define SYS_read 63
#define SYS_write 64
#define SYS_nanosleep 101
#define MAGIC1 0xfee1deadL
#define MAGIC2 672274793L
#define POWER_OFF 0x4321fedcL

void _start(void)
{
	static const char here[] = "pyvmm-bench: init\n";
	static const char line[] = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnop\n";
	static const long a_while[2] = { 0, 300000000 }; /* for the stop watch */

#ifdef TYPED
	char byte;

	while (call(SYS_read, 0, (long)&byte, 1, 0) == 1 && byte != '\n')
		;
	call(SYS_write, 1, (long)"pyvmm-bench: typed\n", 19, 0);
#endif
	call(SYS_write, 1, (long)here, sizeof(here) - 1, 0);
	call(SYS_nanosleep, (long)a_while, 0, 0, 0);
	for (int n = 0; n < 64; n++)
		call(SYS_write, 1, (long)line, sizeof(line) - 1, 0);
	call(SYS_write, 1, (long)"pyvmm-bench: end\n", 17, 0);
	call(SYS_nanosleep, (long)a_while, 0, 0, 0);
	call(SYS_reboot, MAGIC1, MAGIC2, POWER_OFF, 0);
	for (;;)
		;
}
