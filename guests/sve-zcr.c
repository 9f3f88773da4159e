/* sve-zcr: Z, P and FFR survive constant changes of ZCR_EL1, on all vCPUs at once. */

#include "sve/registers.h"

/*
 * -p changes=N       on each vCPU; else CHANGES
 * -p break=z|p|ffr   spoil one byte of that bank on the last vCPU; the check must find it
 *
 * The part of a register that a shorter length can access must hold.  The rest may come back
 * unchanged or as zeros.  Source: Arm DDI 0487, B1.4 and ZCR_EL1.
 */

#define CHANGES			200
#define FILL_EVERY		16		/* changes */
#define EXIT_EVERY		4

static struct report {
	uint32_t failures;
	uint32_t lengths;			/* bit n: (n + 1) * 128 bits were selected */
	uint32_t done;				/* written last */
} reports[MAX_CPUS];

static uint32_t random_number(uint64_t *state)
{
	*state = *state * 6364136223846793005 + 1442695040888963407;
	return *state >> 33;
}

static void fill(struct filling *filling)
{
	filling->vl = filling->kept = sve_set_len(LEN_MAX);
	filling->round++;
	sve_fill(filling);
}

/* LEN reads back as written, also after the host had the CPU. */
static uint32_t check_len(unsigned int len)
{
	uint64_t zcr = sve_zcr();

	if ((zcr & LEN_MAX) == len)
		return 0;
	print("vCPU %u: ZCR_EL1.LEN=%u reads back as 0x%lx\n", cpu_index(), len, zcr);
	return 1;
}

static void hammer(uint64_t changes)
{
	struct report *report = &reports[cpu_index()];
	bool broken = param("break") && cpu_index() == cpu_count() - 1;
	struct filling filling = {.round = 0};
	uint64_t state = cpu_index();

	for (uint64_t change = 0; change < changes && !report->failures; change++) {
		unsigned int len = random_number(&state) % LENS;
		unsigned int vl;

		if (change % FILL_EVERY == 0) {
			fill(&filling);
			if (broken) {
				sve_spoil(&filling);
				len = LEN_MAX;
			}
		}
		vl = sve_set_len(len);
		filling.kept = vl < filling.kept ? vl : filling.kept;
		report->lengths |= 1u << (vl / 16 - 1);
		if (change % EXIT_EVERY == 0)
			exit_to_host();
		report->failures += check_len(len) + sve_check(&filling);
	}
}

static void hammer_cpu(uint64_t changes)
{
	if (sve_enable())
		hammer(changes);
	__atomic_store_n(&reports[cpu_index()].done, 1, __ATOMIC_RELEASE);
	sev();
}

static unsigned int count_bits(uint32_t bits)
{
	unsigned int count = 0;

	for (; bits; bits &= bits - 1)
		count++;
	return count;
}

int main(void)
{
	uint64_t changes = param("changes") ? param_number("changes") : CHANGES;
	unsigned int cpus = cpu_count();
	uint32_t failures = 0, lengths = 0;

	if (!sve_enable()) {
		print("SVE: not implemented\n");
		return 0;
	}
	for (unsigned int i = 1; i < cpus; i++) {
		long error = cpu_on(i, hammer_cpu, changes);

		if (error)
			panic("vCPU %u: PSCI CPU_ON returned %ld\n", i, error);
	}
	hammer_cpu(changes);
	for (unsigned int i = 0; i < cpus; i++) {
		if (!wait_for(&reports[i].done, 1))
			panic("vCPU %u: no report\n", i);
		failures += reports[i].failures;
		lengths |= reports[i].lengths;
	}
	print("%lu changes of ZCR_EL1.LEN on each of %u vCPUs, %u lengths: %s\n", changes, cpus,
	      count_bits(lengths), failures ? "registers were lost" : "all registers held");
	return failures != 0;
}
