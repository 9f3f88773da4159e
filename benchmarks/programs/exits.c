/*
 * Measures one access of each kind: a guest without an operating system that times itself by the
 * virtual counter and prints lines of NAME TICKS COUNT on its serial port.  With -DFIFO it then
 * prints "input" and reads COUNT bytes and one more.  At the end it switches off.
 *
 * -DUART     address of the UART's data: stores and loads of a byte
 * -DSTATUS   expression that reads the UART's status
 * -DREADY    expression: a byte may be stored, by STATUS
 * -DARRIVED  expression: a byte can be loaded, by STATUS
 * -DFIFO     statement that switches the UART's FIFOs on
 * -DRESET    statement that resets the receive FIFO, if input survives that: then the guest reads
 *            RESETS more bytes, one after each reset
 * -DRTC_READ, -DRTC_WRITE  accesses of the real-time clock
 * -DHOLE     address without a device
 */

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

#define COUNT 2000
#define RESETS 64
#define PSCI_VERSION 0x84000000 /* Arm DEN 0022 */
#define SYSTEM_OFF 0x84000008

#define READ8(address) (*(volatile u8 *)(address))
#define READ32(address) (*(volatile u32 *)(address))

static u64 now(void)
{
	u64 ticks;

	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
}

static u64 call(u64 function)
{
	register u64 x0 asm("x0") = function;

	asm volatile("hvc #0" : "+r"(x0) : : "x1", "x2", "x3", "memory");
	return x0;
}

static void put(u8 byte)
{
	u32 status;

	do
		status = STATUS;
	while (!(READY));
	READ8(UART) = byte;
}

#ifdef FIFO
static void get(void)
{
	u32 status;

	do
		status = STATUS;
	while (!(ARRIVED));
	(void)READ8(UART);
}
#endif

static void put_number(u64 value)
{
	u8 digits[20];
	int n = 0;

	do {
		digits[n++] = '0' + value % 10;
	} while (value /= 10);
	while (n)
		put(digits[--n]);
}

static void report(const char *name, u64 ticks, u64 count)
{
	while (*name)
		put(*name++);
	put(' ');
	put_number(ticks);
	put(' ');
	put_number(count);
	put('\n');
}

#define TIME(name, what)                                      \
	do {                                                  \
		for (int n = 0; n < 64; n++)                  \
			what; /* warm-up */ \
		u64 before = now();                           \
		for (int n = 0; n < COUNT; n++)               \
			what;                                 \
		report(name, now() - before, COUNT);          \
	} while (0)

#ifdef FIFO
static void take_input(void)
{
	u64 before;

	FIFO;
	for (const char *word = "input\n"; *word; word++)
		put(*word);
	get(); /* from here on there is always a byte, or one on its way */
	before = now();
	for (int n = 0; n < COUNT; n++)
		get();
	report("byte_in", now() - before, COUNT);
#ifdef RESET
	before = now();
	for (int n = 0; n < RESETS; n++) {
		RESET;
		get();
	}
	report("byte_in_after_reset", now() - before, RESETS);
#endif
}
#endif

void guest_main(void)
{
	u64 frequency;

	put('\n');
	asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	report("frequency", frequency, 1);
	TIME("hvc", call(PSCI_VERSION));
	TIME("unclaimed_read", (void)READ32(HOLE));
	TIME("unclaimed_write", READ32(HOLE) = 1);
	TIME("rtc_read", (void)RTC_READ);
	TIME("rtc_write", RTC_WRITE);
	TIME("status_read", (void)STATUS);
	TIME("polled_byte", put('.'));
	put('\n');
#ifdef FIFO
	take_input();
#endif
	call(SYSTEM_OFF);
	for (;;)
		;
}

#ifndef START
#define START ".text.start"
#endif

asm(".pushsection " START ", \"ax\"\n"
    ".globl _start\n"
    "_start:\n"
    "	adrp	x1, stack_end\n"
    "	add	x1, x1, :lo12:stack_end\n"
    "	mov	sp, x1\n"
    "	bl	guest_main\n"
    ".popsection\n"
    ".pushsection .bss\n"
    ".balign 16\n"
    ".skip 4096\n"
    "stack_end:\n"
    ".popsection\n");
