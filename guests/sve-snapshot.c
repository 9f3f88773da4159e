/* sve-snapshot: every vCPU checks that it keeps its whole state across pauses and snapshots. */

#include "sve/registers.h"

/*
 * -p len=N       run at ZCR_EL1.LEN = N, not at the longest
 * -p patience=N  so many seconds without an interrupt are a failure
 * -p rounds=N    end with success after so many rounds of the boot vCPU; else by command
 *
 * PSCI leaves the last vCPU off.  In each round, all others fill Z, P, FFR, FPCR and some system
 * registers with a pattern.  A timer interrupts them every millisecond.  They check that the pattern
 * holds, that RDVL and the counter are right, that interrupts come, and that pages of memory have
 * their last content.  The boot vCPU reads commands from its console:
 *
 *   s   print the progress          c   start the last vCPU by CPU_ON: it runs rounds too
 *   q   print the progress, and end
 */

#define TICK_US			1000
#define PATIENCE_S		20	/* an emulated CPU may be slow */
#define SPINS			2000
#define SGI_PING		3
#define PAGES			64
#define PAGE			4096

static struct cpu {
	uint64_t period, compare;	/* of the timer */
	uint64_t last, gap;		/* time of the last tick, and the longest time without one */
	uint32_t ticks, rounds, pings, pongs;
	unsigned int longest;		/* RDVL in bytes at the longest LEN */
	bool up;
} cpus[MAX_CPUS];

static unsigned int len = LEN_MAX;
static unsigned int patience_s = PATIENCE_S;
static uint32_t failures;
static uint64_t pages[PAGES][PAGE / 8] __attribute__((aligned(PAGE)));

#define fail(format, ...) do {							\
	print("vCPU %u: " format "\n", cpu_index(), __VA_ARGS__);		\
	__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED);			\
} while (0)

/* System registers with room for a pattern, and the bits that they keep. */
#define FOR_EACH_REGISTER(do)							\
	do(TPIDR_EL0, ~0ull) do(TPIDRRO_EL0, ~0ull) do(SP_EL0, ~0ull)	\
	do(CONTEXTIDR_EL1, 0xffffffff) do(TTBR1_EL1, 0xfffffffff000)		\
	do(AMAIR_EL1, 0) do(FPCR, 0x07c00000) do(FPSR, 0xf800009f)

static uint64_t pattern(unsigned int number, uint32_t round)
{
	uint64_t key = (uint64_t)cpu_index() << 32 | round << 8 | number;

	return (key + 1) * 0x9e3779b97f4a7c15;
}

static void fill_registers(uint32_t round)
{
	unsigned int number = 0;

#define FILL(reg, mask)	write_sysreg(pattern(number++, round) & (mask), reg);
	FOR_EACH_REGISTER(FILL)
	isb();
}

static void check_registers(uint32_t round)
{
	unsigned int number = 0;
	uint64_t want, got;

#define CHECK(reg, mask)							\
	want = pattern(number++, round) & (mask);				\
	got = read_sysreg(reg) & (mask);					\
	if (got != want)							\
		fail(#reg " is 0x%lx, not 0x%lx", got, want);
	FOR_EACH_REGISTER(CHECK)
}

void irq(uint32_t intid)
{
	struct cpu *cpu = &cpus[cpu_index()];
	uint64_t now = counter();

	if (intid == SGI_PING) {
		cpu->pings++;
		return;
	}
	if (intid != virtual_timer_intid()) {
		fail("spurious interrupt %u", intid);
		return;
	}
	if (now < cpu->compare)
		fail("the timer is early by %lu counts", cpu->compare - now);
	if (now - cpu->last > cpu->gap)
		cpu->gap = now - cpu->last;
	cpu->last = now;
	cpu->ticks++;
	cpu->compare = now + cpu->period;
	write_sysreg(cpu->compare, CNTV_CVAL_EL0);
	isb();
}

/* Return whether interrupts change a number before the deadline. */
static bool changes(const uint32_t *number, uint32_t from)
{
	uint64_t start = counter();
	uint64_t patience = read_sysreg(CNTFRQ_EL0) * patience_s;

	while (*(volatile const uint32_t *)number == from)
		if (counter() - start > patience)
			return false;
	return true;
}

/* Run for a while, and check that interrupts come. */
static void be_interrupted(struct cpu *cpu)
{
	uint32_t ticks = cpu->ticks;

	irq_enable();
	for (volatile int i = 0; i < SPINS; i++)
		;
	if (!changes(&cpu->ticks, ticks))
		fail("no timer interrupt for %u s", patience_s);
	irq_disable();
}

/* Write one page a round; all pages must have their last content. */
static void check_pages(uint32_t round)
{
	uint64_t seen = 0;

	pages[round % PAGES][round / PAGES % (PAGE / 8)] = round;
	pages[round % PAGES][PAGE / 8 - 1] = round;
	for (uint32_t back = 0; back < PAGES && back <= round; back++) {
		seen = pages[(round - back) % PAGES][PAGE / 8 - 1];
		if (seen != round - back)
			fail("page %u has %lu, not %u", (round - back) % PAGES, seen, round - back);
	}
}

static void check_length(struct cpu *cpu, unsigned int vl)
{
	unsigned int longest;

	if (sve_rdvl() != vl)
		fail("RDVL is %lu bytes, not %u", sve_rdvl(), vl);
	if ((sve_zcr() & LEN_MAX) != len)
		fail("ZCR_EL1.LEN is %lu, not %u", sve_zcr() & LEN_MAX, len);
	longest = sve_set_len(LEN_MAX);
	if (longest != cpu->longest)
		fail("there are %u bytes of vector length, not %u", longest, cpu->longest);
	sve_set_len(len);
}

static void status(void)
{
	for (unsigned int i = 0; i < cpu_count(); i++) {
		struct cpu *cpu = &cpus[i];

		print("vCPU %u: %s rounds=%u ticks=%u pings=%u gap_us=%lu vl=%u\n", i,
		      cpu->up ? "on" : "off", cpu->rounds, cpu->ticks, cpu->pings,
		      cpu->gap / (read_sysreg(CNTFRQ_EL0) / 1000000), cpu->longest * 8);
	}
	print("failures=%u\n", failures);
}

static void run_rounds(uint64_t context);

static void listen(void)
{
	char key;
	unsigned int last = cpu_count() - 1;

	if (!uart_read(&key, 1))
		return;
	if (key == 'c' && last && cpu_on(last, run_rounds, 0))
		fail("vCPU %u cannot be started", last);
	if (key == 's' || key == 'q')
		status();
	if (key == 'q')
		exit_vm(failures != 0);
}

/* The boot vCPU sends the next one an SGI, and checks its reply a round later. */
static void ping(struct cpu *cpu)
{
	if (cpu_index() || cpu_count() < 3)
		return;
	if (cpu->pongs && !changes(&cpus[1].pings, cpu->pongs - 1))
		fail("%u of %u SGIs arrived", cpus[1].pings, cpu->pongs);
	cpu->pongs++;
	gic_send_sgi(SGI_PING, 1);
}

static void start_timer(struct cpu *cpu)
{
	cpu->period = read_sysreg(CNTFRQ_EL0) / 1000000 * TICK_US;
	cpu->last = counter();
	cpu->compare = cpu->last + cpu->period;
	write_sysreg(cpu->compare, CNTV_CVAL_EL0);
	write_sysreg(1, CNTV_CTL_EL0);
	isb();
}

static void run_rounds(uint64_t context)
{
	struct cpu *cpu = &cpus[cpu_index()];
	uint32_t rounds = param("rounds") ? param_number("rounds") : 0;
	bool sve = sve_enable();
	unsigned int vl = 0;

	(void)context;
	cpu->longest = sve ? sve_set_len(LEN_MAX) : 0;
	if (sve)
		vl = sve_set_len(len);
	gic_init_cpu();
	gic_enable(SGI_PING);
	gic_enable(virtual_timer_intid());
	start_timer(cpu);
	cpu->up = true;
	while (!rounds || cpu->rounds < rounds || cpu_index()) {
		const struct filling filling = {.vl = vl, .kept = vl, .round = cpu->rounds % 256};

		ping(cpu);
		if (sve)
			sve_fill(&filling);
		fill_registers(cpu->rounds);
		be_interrupted(cpu);
		check_registers(cpu->rounds);
		if (sve) {
			__atomic_add_fetch(&failures, sve_check(&filling), __ATOMIC_RELAXED);
			check_length(cpu, vl);
		}
		if (!cpu_index()) {
			check_pages(cpu->rounds);
			listen();
		}
		cpu->rounds++;
	}
}

int main(void)
{
	if (param("len"))
		len = param_number("len");
	if (param("patience"))
		patience_s = param_number("patience");
	gic_init();
	for (unsigned int i = 1; i + 1 < cpu_count(); i++)
		if (cpu_on(i, run_rounds, 0))
			panic("vCPU %u cannot be started\n", i);
	print("at work\n");
	run_rounds(0);
	status();
	return failures != 0;
}
