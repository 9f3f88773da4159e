/* sve-vls: every vCPU has exactly the vector lengths of the VM, and Z, P and FFR hold at each. */

#include "guest.h"

/*
 * -p break=z|p|ffr   spoil one byte of that bank on the last vCPU, which must be noticed
 *
 * Source: Arm DDI 0487, ZCR_EL1 (a LEN that is not supported selects the next lower one) and
 * B1.4 (what a change of the vector length keeps).
 */

#define LENS			16
#define LEN_MAX			(LENS - 1)
#define MAX_VL			256		/* bytes */
#define GUARD			32		/* bytes after the longest register */
#define POISON			0xa5
#define SPINS			20000

#define PFR0_SVE(pfr0)		((pfr0) >> 32 & 0xf)
#define CPACR_FPEN		(3 << 20)
#define CPACR_ZEN		(3 << 16)

/* sve-vls-regs.S */
void sve_load_z(uint64_t number, const void *from);
void sve_store_z(uint64_t number, void *to);
void sve_load_p(uint64_t number, const void *from);
void sve_store_p(uint64_t number, void *to);
void sve_load_ffr_keeping_p0(uint64_t number, const void *from, void *p0);
void sve_store_ffr_keeping_p0(uint64_t number, void *to, void *p0);
uint64_t sve_rdvl(void);

/* What a vCPU found.  `done` is written last. */
static struct report {
	uint32_t lens;				/* bit n: a LEN selects (n + 1) * 128 bits */
	uint32_t failures;
	uint32_t done;
} reports[MAX_CPUS];

#define fail(format, ...) do {							\
	print("vCPU %u: " format "\n", cpu_index(), __VA_ARGS__);		\
	reports[cpu_index()].failures++;					\
} while (0)

static void load_ffr(uint64_t number, const void *from)
{
	uint8_t p0[MAX_VL / 8];

	sve_load_ffr_keeping_p0(number, from, p0);
}

static void store_ffr(uint64_t number, void *to)
{
	uint8_t p0[MAX_VL / 8];

	sve_store_ffr_keeping_p0(number, to, p0);
}

/*
 * The patterns: bytes differ along a register and between registers, vector lengths and vCPUs,
 * so that nothing stale or swapped passes; none is zero.
 */
static uint64_t scrambled(unsigned int vl, unsigned int bank, unsigned int number, unsigned int i)
{
	uint64_t key = (uint64_t)cpu_index() << 40 | vl << 24 | bank << 16 | number << 8 | (i + 1);

	key *= 0x9e3779b97f4a7c15;
	key ^= key >> 29;
	return key * 0xbf58476d1ce4e5b9 | 0x1010101010101010;
}

static void make_z(unsigned int vl, unsigned int number, uint64_t *to)
{
	for (unsigned int i = 0; i < MAX_VL / 8; i++)
		to[i] = scrambled(vl, 0, number, i);
}

static void make_p(unsigned int vl, unsigned int number, uint64_t *to)
{
	for (unsigned int i = 0; i < MAX_VL / 64; i++)
		to[i] = scrambled(vl, 1, number, i);
}

/* FFR may hold only ones from bit 0 up, then zeros: they begin in its last byte. */
static void make_ffr(unsigned int vl, unsigned int number, uint64_t *to)
{
	unsigned int ones = vl - 3 - (cpu_index() + number) % 4;

	for (unsigned int i = 0; i < MAX_VL / 64; i++) {
		unsigned int here = ones < 64 ? ones : 64;

		to[i] = here == 64 ? ~0ull : (1ull << here) - 1;
		ones -= here;
	}
}

static const struct bank {
	const char *name;
	unsigned int count;
	unsigned int divisor;			/* of the vector length, for a register's size */
	void (*make)(unsigned int vl, unsigned int number, uint64_t *to);
	void (*load)(uint64_t number, const void *from);
	void (*store)(uint64_t number, void *to);
} banks[] = {
	{"z", 32, 1, make_z, sve_load_z, sve_store_z},
	{"p", 16, 8, make_p, sve_load_p, sve_store_p},
	{"ffr", 1, 8, make_ffr, load_ffr, store_ffr},
};

#define for_each_bank(bank)	for (bank = banks; bank < banks + ARRAY_SIZE(banks); bank++)

static unsigned int set_len(unsigned int len)
{
	write_sysreg(len, ZCR_EL1);
	isb();
	return sve_rdvl();
}

static void fill(unsigned int vl)
{
	const struct bank *bank;
	uint64_t pattern[MAX_VL / 8];

	for_each_bank(bank) {
		for (unsigned int n = 0; n < bank->count; n++) {
			bank->make(vl, n, pattern);
			bank->load(n, pattern);
		}
	}
}

/* The registers were filled at length `filled`, which has been as short as `kept` since then. */
struct history {
	unsigned int filled;
	unsigned int kept;
};

static void check_register(const struct bank *bank, unsigned int n, const struct history *history)
{
	unsigned int size = sve_rdvl() / bank->divisor;
	uint64_t pattern[MAX_VL / 8];
	const uint8_t *want = (const uint8_t *)pattern;
	uint8_t got[MAX_VL + GUARD];
	char number[4] = "";

	bank->make(history->filled, n, pattern);
	memset(got, POISON, sizeof(got));
	bank->store(n, got);
	for (unsigned int i = 0; i < sizeof(got); i++) {
		uint8_t expected = i < size ? want[i] : POISON;
		/* Bits that were out of reach come back as they were, or as zeros. */
		bool may_be_zero = i < size && i >= history->kept / bank->divisor;

		if (got[i] == expected || (may_be_zero && !got[i]))
			continue;
		if (bank->count > 1)
			format_text(number, sizeof(number), "%u", n);
		fail("VL %lu: %s%s byte %u: expected 0x%02x, got 0x%02x", sve_rdvl() * 8,
		     bank->name, number, i, expected, got[i]);
		return;
	}
}

static void check_registers(unsigned int filled, unsigned int kept)
{
	const struct history history = {.filled = filled, .kept = kept};
	const struct bank *bank;

	for_each_bank(bank)
		for (unsigned int n = 0; n < bank->count; n++)
			check_register(bank, n, &history);
}

/* Long enough to be interrupted, and with exits: the host's own use of SVE must not show. */
static void hold(void)
{
	for (int round = 0; round < 2; round++) {
		for (volatile int i = 0; i < SPINS; i++)
			;
		exit_to_host();
	}
}

/* What a host that loses a byte would do, where -p break asks for it. */
static void spoil(unsigned int vl)
{
	const struct bank *bank;
	uint64_t pattern[MAX_VL / 8];

	for_each_bank(bank) {
		if (!param_is("break", bank->name))
			continue;
		bank->make(vl, bank->count - 1, pattern);
		((uint8_t *)pattern)[vl / bank->divisor - 1] >>= 1;
		bank->load(bank->count - 1, pattern);
	}
}

static bool is_last(uint32_t lens, unsigned int len)
{
	return lens >> len == 1;
}

static unsigned int longest(uint32_t lens)
{
	return 31 - __builtin_clz(lens);
}

/* Which lengths there are; each LEN must select the longest of them that it allows. */
static uint32_t probe_lens(void)
{
	uint32_t lens = 0;

	for (unsigned int len = 0; len < LENS; len++)
		lens |= 1u << (set_len(len) / 16 - 1);
	if (!(lens & 1))
		fail("no length of 128 bits (lengths/128: 0x%x)", lens << 1);

	for (unsigned int len = 0; len < LENS; len++) {
		unsigned int vl = set_len(len);
		uint32_t allowed = lens & ((2u << len) - 1);
		uint64_t zcr = read_sysreg(ZCR_EL1);

		if (!allowed || vl != (longest(allowed) + 1) * 16)
			fail("ZCR_EL1.LEN=%u selects %u bits", len, vl * 8);
		if ((zcr & LEN_MAX) != len)
			fail("ZCR_EL1.LEN=%u reads back as 0x%lx", len, zcr);
	}
	return lens;
}

/* Filled at each length, the registers hold. */
static void check_lengths(uint32_t lens)
{
	bool broken = cpu_index() == cpu_count() - 1 && param("break");

	for (unsigned int len = 0; len < LENS; len++) {
		if (!(lens >> len & 1))
			continue;

		unsigned int vl = set_len(len);

		fill(vl);
		if (broken && is_last(lens, len))
			spoil(vl);
		hold();
		check_registers(vl, vl);
	}
}

/* Filled at the longest, they keep what remains in reach at each shorter one, and beyond. */
static void check_changes(uint32_t lens)
{
	unsigned int most = set_len(LEN_MAX);

	fill(most);
	for (unsigned int len = LENS; len--;) {
		if (!(lens >> len & 1))
			continue;

		unsigned int vl = set_len(len);

		hold();
		check_registers(most, vl);
	}

	unsigned int least = set_len(0);

	set_len(LEN_MAX);
	check_registers(most, least);
}

static void check_cpu(uint64_t unused)
{
	struct report *report = &reports[cpu_index()];

	(void)unused;
	if (PFR0_SVE(read_sysreg(ID_AA64PFR0_EL1))) {
		write_sysreg(CPACR_FPEN | CPACR_ZEN, CPACR_EL1);
		isb();
		report->lens = probe_lens();
		check_lengths(report->lens);
		check_changes(report->lens);
	}
	__atomic_store_n(&report->done, 1, __ATOMIC_RELEASE);
	sev();
}

static void print_lens(const char *before, uint32_t lens)
{
	char line[LENS * 5 + 1];
	size_t n = 0;

	line[0] = '\0';
	for (unsigned int len = 0; len < LENS; len++)
		if (lens >> len & 1)
			n += format_text(line + n, sizeof(line) - n, " %u", (len + 1) * 128);
	print("%s%s\n", before, n ? line : " none");
}

static uint32_t collect(unsigned int cpus)
{
	uint32_t failures = 0;

	for (unsigned int i = 0; i < cpus; i++) {
		if (!wait_for(&reports[i].done, 1))
			panic("vCPU %u: no report\n", i);
		failures += reports[i].failures;
		if (reports[i].lens != reports[0].lens) {
			char before[64];

			format_text(before, sizeof(before), "vCPU %u: not as vCPU 0, but", i);
			print_lens(before, reports[i].lens);
			failures++;
		}
	}
	return failures;
}

int main(void)
{
	unsigned int cpus = cpu_count();
	uint32_t failures;

	for (unsigned int i = 1; i < cpus; i++) {
		long error = cpu_on(i, check_cpu, 0);

		if (error)
			panic("vCPU %u: PSCI CPU_ON returned %ld\n", i, error);
	}
	check_cpu(0);
	failures = collect(cpus);

	print("ID_AA64PFR0_EL1=0x%lx ID_AA64ZFR0_EL1=0x%lx MIDR_EL1=0x%lx vCPUs=%u\n",
	      read_sysreg(ID_AA64PFR0_EL1), read_sysreg(ID_AA64ZFR0_EL1), read_sysreg(MIDR_EL1),
	      cpus);
	if (reports[0].lens)
		print_lens("SVE vector lengths:", reports[0].lens);
	else
		print("SVE: not implemented\n");
	return failures != 0;
}
