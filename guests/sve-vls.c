/* sve-vls: every vCPU has exactly the VM's vector lengths, and keeps Z, P and FFR at each. */

#include "sve/registers.h"

/*
 * -p break=z|p|ffr   spoil one byte of that bank on the last vCPU; the check must find it
 *
 * Source: Arm DDI 0487, ZCR_EL1 (an unsupported LEN selects the next lower length) and
 * B1.4 (the bits that a change of the vector length keeps).
 */

#define SPINS			20000

/* The results of a vCPU.  It writes `done` last. */
static struct report {
	uint32_t lens;				/* bit n: a LEN selects (n + 1) * 128 bits */
	uint32_t failures;
	uint32_t done;
} reports[MAX_CPUS];

#define fail(format, ...) do {							\
	print("vCPU %u: " format "\n", cpu_index(), __VA_ARGS__);		\
	reports[cpu_index()].failures++;					\
} while (0)

/* Wait long enough for interrupts and exits: the host's own use of SVE must not show. */
static void hold(void)
{
	for (int round = 0; round < 2; round++) {
		for (volatile int i = 0; i < SPINS; i++)
			;
		exit_to_host();
	}
}

static void check(const struct filling *filling)
{
	reports[cpu_index()].failures += sve_check(filling);
}

static bool is_last(uint32_t lens, unsigned int len)
{
	return lens >> len == 1;
}

static unsigned int longest(uint32_t lens)
{
	return 31 - __builtin_clz(lens);
}

/* Find the lengths; each LEN must select the longest that it allows. */
static uint32_t probe_lens(void)
{
	uint32_t lens = 0;

	for (unsigned int len = 0; len < LENS; len++)
		lens |= 1u << (sve_set_len(len) / 16 - 1);
	if (!(lens & 1))
		fail("no length of 128 bits (lengths/128: 0x%x)", lens << 1);

	for (unsigned int len = 0; len < LENS; len++) {
		unsigned int vl = sve_set_len(len);
		uint32_t allowed = lens & ((2u << len) - 1);
		uint64_t zcr = sve_zcr();

		if (!allowed || vl != (longest(allowed) + 1) * 16)
			fail("ZCR_EL1.LEN=%u selects %u bits", len, vl * 8);
		if ((zcr & LEN_MAX) != len)
			fail("ZCR_EL1.LEN=%u reads back as 0x%lx", len, zcr);
	}
	return lens;
}

/* The registers keep a pattern at each length. */
static void check_lengths(uint32_t lens)
{
	bool broken = cpu_index() == cpu_count() - 1 && param("break");

	for (unsigned int len = 0; len < LENS; len++) {
		if (!(lens >> len & 1))
			continue;

		unsigned int vl = sve_set_len(len);

		const struct filling filling = {.vl = vl, .kept = vl};

		sve_fill(&filling);
		if (broken && is_last(lens, len))
			sve_spoil(&filling);
		hold();
		check(&filling);
	}
}

/* Filled at the longest length, they keep the accessible part at each shorter one. */
static void check_changes(uint32_t lens)
{
	struct filling filling = {.vl = sve_set_len(LEN_MAX)};

	sve_fill(&filling);
	for (unsigned int len = LENS; len--;) {
		if (!(lens >> len & 1))
			continue;

		filling.kept = sve_set_len(len);
		hold();
		check(&filling);
	}

	filling.kept = sve_set_len(0);
	sve_set_len(LEN_MAX);
	check(&filling);
}

static void check_cpu(uint64_t unused)
{
	struct report *report = &reports[cpu_index()];

	(void)unused;
	if (sve_enable()) {
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
