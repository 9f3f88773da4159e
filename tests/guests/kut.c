/*
 * Behaves like a test of kvm-unit-tests that is built for kvmtool: a flat image without a header,
 * with the first 16550A as console.  It ends by PSCI after the line that the runner searches for.
 *
 * Prints its command line and its initrd, and "EXIT: STATUS=n" for a command line "status=n".  With
 * "migrate=n" it first asks for n migrations, as the migration tests do.  With "migrate=-" it skips
 * its migration, as such a test does when it lacks something.
 */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

asm(".section .text.head, \"ax\"\n"
    ".globl _start\n"
    "_start:	adrp	x1, stack_top\n"
    "	add	sp, x1, :lo12:stack_top\n"
    "	b	run\n");

u8 stack[4096] __attribute__((aligned(16), used));
asm(".globl stack_top\n.set stack_top, stack + 4096");

static const char *bootargs;
static u64 initrd_start, initrd_end;

static void put(const char *text, const char *end)
{
	for (; end ? text < end : *text; text++)
		asm volatile("strb %w0, [%1]" : : "r"(*text), "r"(0x01000000ul) : "memory");
}

static u8 uart(u64 offset)
{
	u8 value;

	asm volatile("ldrb %w0, [%1]" : "=r"(value) : "r"(0x01000000ul + offset) : "memory");
	return value;
}

static void wait_for_key(void)
{
	while (!(uart(5) & 1))			/* LSR.DR */
		;
	uart(0);
}

static void ask_for_migration(void)
{
	put("Now migrate the VM, then press a key to continue...\n", 0);
	wait_for_key();
	put("Migration complete\n", 0);
}

static void skip_migration(void)
{
	put("Skipped VM migration (quiet)\n", 0);
	wait_for_key();
}

static u32 be32(const u8 *p)
{
	return (u32)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* Only /chosen has properties of these names, so the search ignores the node. */
static void read_fdt(const u8 *fdt)
{
	const u8 *p = fdt + be32(fdt + 8);
	const char *names = (const char *)fdt + be32(fdt + 12);

	for (;;) {
		u32 token = be32(p);

		p += 4;
		if (token == 1) {
			while (*p)
				p++;
			p += 4 - ((u64)p & 3);
		} else if (token == 3) {
			const char *name = names + be32(p + 4);
			const u8 *value = p + 8;
			u64 word = (u64)be32(value) << 32 | be32(value + 4);

			if (same(name, "bootargs"))
				bootargs = (const char *)value;
			else if (same(name, "linux,initrd-start"))
				initrd_start = word;
			else if (same(name, "linux,initrd-end"))
				initrd_end = word;
			p = value + ((be32(p) + 3) & ~3u);
		} else if (token == 9) {
			return;
		}
	}
}

__attribute__((used, noreturn)) void run(const u8 *fdt)
{
	register u64 function asm("x0") = 0x84000008; /* PSCI SYSTEM_OFF */

	read_fdt(fdt);
	put("ARGS: ", 0);
	put(bootargs, 0);
	put("\nENV: ", 0);
	put((const char *)initrd_start, (const char *)initrd_end);
	put("\n", 0);
	if (bootargs[0] == 'm' && bootargs[8] == '-')
		skip_migration();
	else if (bootargs[0] == 'm')
		for (char n = bootargs[8]; n > '0'; n--)
			ask_for_migration();
	put("\nEXIT: STATUS=", 0);
	put(bootargs[0] == 's' ? bootargs + 7 : bootargs[0] == 'm' ? "0" : "1", 0);
	put("\n", 0);
	asm volatile("hvc #0" : : "r"(function));
	for (;;)
		;
}
