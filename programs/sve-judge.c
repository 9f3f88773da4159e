/* Patterns for Z, P and FFR, and the check of their content. */

#include "sve-watcher.h"

#define POISON			0xa5		/* in no pattern: patterns have no byte above 0x7f */
#define LOW			16		/* bytes: the FPSIMD part of a Z register */

/* Bytes differ along a register, between registers and between rounds; none is zero. */
static void make(uint8_t *to, size_t size, uint64_t key)
{
	for (size_t i = 0; i < size; i++) {
		uint64_t mixed = (key << 16 | (i + 1)) * 0x9e3779b97f4a7c15;

		mixed ^= mixed >> 29;
		mixed *= 0xbf58476d1ce4e5b9;
		to[i] = (mixed >> 40 & 0x7f) | 0x10;
	}
}

/* FFR may hold only ones from bit 0 up, then zeros.  Source: Arm DDI 0487, WRFFR. */
static void make_ffr(uint8_t *to, unsigned int vl, unsigned int round)
{
	unsigned int ones = vl - 3 - round % 4;

	for (unsigned int i = 0; i < MAX_PL; i++) {
		unsigned int here = ones < 8 ? ones : 8;

		to[i] = (1u << here) - 1;
		ones -= here;
	}
}

void judge_prepare(struct hold *hold, unsigned int vl, unsigned int round)
{
	for (unsigned int n = 0; n < Z_COUNT; n++)
		make(hold->in_z[n], MAX_VL, (uint64_t)round << 8 | n);
	for (unsigned int n = 0; n < P_COUNT; n++)
		make(hold->in_p[n], MAX_PL, (uint64_t)round << 8 | 0x80 | n);
	make_ffr(hold->in_ffr, vl, round);
	memset(hold->out_z, POISON, sizeof(hold->out_z));
	memset(hold->out_p, POISON, sizeof(hold->out_p));
	memset(hold->out_ffr, POISON, sizeof(hold->out_ffr));
	hold->vl_min = hold->vl_max = hold->loops = 0;
	hold->gate = 0;
	hold->state = STATE_IDLE;
}

struct findings {
	bool truncated, zeroed, foreign, low, p, ffr;
};

static void judge_z(const struct hold *hold, unsigned int n, unsigned int vl,
		    struct findings *found)
{
	for (unsigned int i = 0; i < MAX_VL; i++) {
		uint8_t got = hold->out_z[n][i];
		uint8_t expected = i < vl ? hold->in_z[n][i] : POISON;

		if (got == expected)
			continue;
		if (i < LOW)
			found->low = true;
		if (got == POISON)
			found->truncated = true;
		else if (got == 0)
			found->zeroed = true;
		else
			found->foreign = true;
	}
}

static bool same(const uint8_t *got, const uint8_t *expected, unsigned int size)
{
	for (unsigned int i = 0; i < MAX_PL; i++)
		if (got[i] != (i < size ? expected[i] : POISON))
			return false;
	return true;
}

static struct findings look(const struct hold *hold, unsigned int vl)
{
	struct findings found = {.ffr = !same(hold->out_ffr, hold->in_ffr, vl / 8)};

	for (unsigned int n = 0; n < Z_COUNT; n++)
		judge_z(hold, n, vl, &found);
	for (unsigned int n = 0; n < P_COUNT; n++)
		found.p |= !same(hold->out_p[n], hold->in_p[n], vl / 8);
	return found;
}

static bool caught(const struct findings *found, enum damage done)
{
	switch (done) {
	case DAMAGE_VL:
		return found->truncated;
	case DAMAGE_ZERO:
		return found->zeroed;
	case DAMAGE_FLIP:
		return found->foreign;
	case DAMAGE_PRED:
		return found->p;
	default:
		return false;
	}
}

static unsigned long least(unsigned long a, unsigned long b)
{
	return a < b ? a : b;
}

void judge(const struct shared *shared, unsigned int vl, enum damage done, struct tally *tally)
{
	const struct hold *hold = &shared->hold;
	struct findings found = look(hold, vl);
	bool first = tally->holds == 0;

	tally->holds++;
	tally->truncated += found.truncated;
	tally->zeroed += found.zeroed;
	tally->foreign += found.foreign;
	tally->low += found.low;
	tally->p += found.p;
	tally->ffr += found.ffr;
	tally->bad += found.truncated || found.zeroed || found.foreign || found.p || found.ffr;
	tally->vl_min = first ? hold->vl_min : least(tally->vl_min, hold->vl_min);
	tally->vl_max = tally->vl_max > hold->vl_max ? tally->vl_max : hold->vl_max;
	tally->loops += hold->loops;
	tally->loops_min = first ? hold->loops : least(tally->loops_min, hold->loops);
	tally->interrupted += shared->switches > 0;
	tally->moved += shared->cpu_before != shared->cpu || shared->cpu_after != shared->cpu;
	tally->rdvl = shared->rdvl;
	tally->prctl = shared->prctl;
	tally->damaged += done != NO_DAMAGE;
	tally->caught += caught(&found, done);
}
