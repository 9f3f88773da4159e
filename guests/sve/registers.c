/* Fill Z, P and FFR of a vCPU with patterns, and check them. */

#include "registers.h"

#define MAX_VL			256		/* bytes */
#define GUARD			32		/* bytes after the longest register */
#define POISON			0xa5

/* access.S */
void sve_load_z(uint64_t number, const void *from);
void sve_store_z(uint64_t number, void *to);
void sve_load_p(uint64_t number, const void *from);
void sve_store_p(uint64_t number, void *to);
void sve_load_ffr_keeping_p0(uint64_t number, const void *from, void *p0);
void sve_store_ffr_keeping_p0(uint64_t number, void *to, void *p0);

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
 * The patterns: bytes differ along a register and between registers, fillings and vCPUs, so that the
 * check finds stale and swapped ones.  No byte is zero.
 */
static uint64_t scrambled(const struct filling *filling, unsigned int bank, unsigned int number,
			  unsigned int i)
{
	uint64_t key = (uint64_t)filling->round << 56 | (uint64_t)cpu_index() << 40 |
		       filling->vl << 24 | bank << 16 | number << 8 | (i + 1);

	key *= 0x9e3779b97f4a7c15;
	key ^= key >> 29;
	return key * 0xbf58476d1ce4e5b9 | 0x1010101010101010;
}

static void make_z(const struct filling *filling, unsigned int number, uint64_t *to)
{
	for (unsigned int i = 0; i < MAX_VL / 8; i++)
		to[i] = scrambled(filling, 0, number, i);
}

static void make_p(const struct filling *filling, unsigned int number, uint64_t *to)
{
	for (unsigned int i = 0; i < MAX_VL / 64; i++)
		to[i] = scrambled(filling, 1, number, i);
}

/* FFR may hold only ones from bit 0 up, then zeros: they begin in its last byte. */
static void make_ffr(const struct filling *filling, unsigned int number, uint64_t *to)
{
	unsigned int ones = filling->vl - 3 - (cpu_index() + number + filling->round) % 4;

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
	void (*make)(const struct filling *filling, unsigned int number, uint64_t *to);
	void (*load)(uint64_t number, const void *from);
	void (*store)(uint64_t number, void *to);
} banks[] = {
	{"z", 32, 1, make_z, sve_load_z, sve_store_z},
	{"p", 16, 8, make_p, sve_load_p, sve_store_p},
	{"ffr", 1, 8, make_ffr, load_ffr, store_ffr},
};

#define for_each_bank(bank)	for (bank = banks; bank < banks + ARRAY_SIZE(banks); bank++)

void sve_fill(const struct filling *filling)
{
	const struct bank *bank;
	uint64_t pattern[MAX_VL / 8];

	for_each_bank(bank) {
		for (unsigned int n = 0; n < bank->count; n++) {
			bank->make(filling, n, pattern);
			bank->load(n, pattern);
		}
	}
}

void sve_spoil(const struct filling *filling)
{
	const struct bank *bank;
	uint64_t pattern[MAX_VL / 8];

	for_each_bank(bank) {
		if (!param_is("break", bank->name))
			continue;
		bank->make(filling, bank->count - 1, pattern);
		((uint8_t *)pattern)[filling->vl / bank->divisor - 1] >>= 1;
		bank->load(bank->count - 1, pattern);
	}
}

static bool check_register(const struct bank *bank, unsigned int n, const struct filling *filling)
{
	unsigned int size = sve_rdvl() / bank->divisor;
	uint64_t pattern[MAX_VL / 8];
	const uint8_t *want = (const uint8_t *)pattern;
	uint8_t got[MAX_VL + GUARD];
	char number[4] = "";

	bank->make(filling, n, pattern);
	memset(got, POISON, sizeof(got));
	bank->store(n, got);
	for (unsigned int i = 0; i < sizeof(got); i++) {
		uint8_t expected = i < size ? want[i] : POISON;
		/* Bits that were not accessible come back unchanged, or as zeros. */
		bool may_be_zero = i < size && i >= filling->kept / bank->divisor;

		if (got[i] == expected || (may_be_zero && !got[i]))
			continue;
		if (bank->count > 1)
			format_text(number, sizeof(number), "%u", n);
		print("vCPU %u: VL %lu: %s%s byte %u: expected 0x%02x, got 0x%02x\n", cpu_index(),
		      sve_rdvl() * 8, bank->name, number, i, expected, got[i]);
		return false;
	}
	return true;
}

uint32_t sve_check(const struct filling *filling)
{
	const struct bank *bank;
	uint32_t wrong = 0;

	for_each_bank(bank)
		for (unsigned int n = 0; n < bank->count; n++)
			wrong += !check_register(bank, n, filling);
	return wrong;
}
