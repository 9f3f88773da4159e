/* sve-math: daxpy, strlen and a matrix product equal scalar code at every vector length. */

#include "sve/length.h"

/*
 * -p kernel=daxpy|strlen|matmul   run only this one
 * -p break=daxpy|strlen|matmul    spoil one result, which the check must find
 *
 * For each length that ZCR_EL1.LEN selects, the guest prints the time of an element, in ticks of
 * the virtual counter (CNTFRQ_EL0 of them are a second).
 */

#define ROUNDS			20		/* the fastest counts */
#define DAXPY_N			1999		/* no multiple of any vector's doubles */
#define STRING_SIZE		4096
#define MATRIX_N		50
#define GUARD			32		/* doubles: as many as the longest vector holds */
#define POISON			0xa5a5a5a5a5a5a5a5

/* sve-math-kernels.S; for C a double is 64 bits */
void sve_daxpy(uint64_t n, const uint64_t *x, uint64_t *y, const uint64_t *a);
void scalar_daxpy(uint64_t n, const uint64_t *x, uint64_t *y, const uint64_t *a);
uint64_t sve_strlen(const char *s);
void sve_matmul(uint64_t n, const uint64_t *a, const uint64_t *b, uint64_t *c);
void scalar_matmul(uint64_t n, const uint64_t *a, const uint64_t *b, uint64_t *c);

static uint64_t left[DAXPY_N + MATRIX_N * MATRIX_N];
static uint64_t right[DAXPY_N + MATRIX_N * MATRIX_N];
static uint64_t expected[DAXPY_N + MATRIX_N * MATRIX_N];
static uint64_t result[DAXPY_N + MATRIX_N * MATRIX_N + GUARD];
static char string[STRING_SIZE];
static const char *current;			/* the kernel's name */

/* A double from 1 to 2, of 52 random bits: a product's rounding shows. */
static uint64_t random_double(void)
{
	static uint64_t state = 1;

	state = state * 6364136223846793005 + 1442695040888963407;
	return 0x3ff0000000000000 | state >> 12;
}

static void randomize(uint64_t *to, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = random_double();
}

static bool mismatch(size_t i, uint64_t want, uint64_t got)
{
	print("%s at %lu bits: element %lu: expected 0x%016lx, got 0x%016lx\n", current,
	      sve_rdvl() * 8, i, want, got);
	return false;
}

/* Check the result, and that nothing was written behind it. */
static bool compare(size_t n)
{
	if (param_is("break", current))
		result[n - 1] ^= 1;
	for (size_t i = 0; i < n; i++)
		if (result[i] != expected[i])
			return mismatch(i, expected[i], result[i]);
	for (size_t i = n; i < n + GUARD; i++)
		if (result[i] != POISON)
			return mismatch(i, POISON, result[i]);
	return true;
}

static void poison(size_t n)
{
	for (size_t i = n; i < n + GUARD; i++)
		result[i] = POISON;
}

static void prepare_daxpy(void)
{
	randomize(left, DAXPY_N + 1);		/* x, then a */
	randomize(right, DAXPY_N);
	memcpy(expected, right, DAXPY_N * sizeof(right[0]));
	scalar_daxpy(DAXPY_N, left, expected, &left[DAXPY_N]);
}

static uint64_t time_daxpy(void)
{
	uint64_t start;

	memcpy(result, right, DAXPY_N * sizeof(right[0]));
	start = counter();
	sve_daxpy(DAXPY_N, left, result, &left[DAXPY_N]);
	return counter() - start;
}

static bool check_daxpy(void)
{
	poison(DAXPY_N);
	time_daxpy();
	return compare(DAXPY_N);
}

static void prepare_strlen(void)
{
	memset(string, 'a', sizeof(string) - 1);
	string[sizeof(string) - 1] = '\0';
}

static uint64_t time_strlen(void)
{
	uint64_t start = counter();

	sve_strlen(string);
	return counter() - start;
}

/* Every length up to two of the longest vectors, at every offset within 16 bytes. */
static bool check_strlen(void)
{
	bool broken = param_is("break", current);
	bool good = true;

	for (size_t length = 0; good && length <= 512; length++) {
		for (size_t offset = 0; good && offset < 16; offset += 5) {
			char *end = &string[offset + length];
			uint64_t got;

			*end = '\0';
			got = sve_strlen(&string[offset]) + (broken && length == 512);
			*end = 'a';
			if (got != length)
				good = mismatch(offset, length, got);
		}
	}
	return good;
}

static void prepare_matmul(void)
{
	randomize(left, MATRIX_N * MATRIX_N);
	randomize(right, MATRIX_N * MATRIX_N);
	scalar_matmul(MATRIX_N, left, right, expected);
}

static uint64_t time_matmul(void)
{
	uint64_t start = counter();

	sve_matmul(MATRIX_N, left, right, result);
	return counter() - start;
}

static bool check_matmul(void)
{
	memset(result, 0, sizeof(result));
	poison(MATRIX_N * MATRIX_N);
	time_matmul();
	return compare(MATRIX_N * MATRIX_N);
}

static const struct kernel {
	const char *name;
	size_t elements;			/* of the timed run */
	void (*prepare)(void);
	bool (*check)(void);
	uint64_t (*time)(void);
} kernels[] = {
	{"daxpy", DAXPY_N, prepare_daxpy, check_daxpy, time_daxpy},
	{"strlen", STRING_SIZE - 1, prepare_strlen, check_strlen, time_strlen},
	{"matmul", MATRIX_N * MATRIX_N, prepare_matmul, check_matmul, time_matmul},
};

static uint64_t fastest(const struct kernel *kernel)
{
	uint64_t best = kernel->time();

	for (int round = 1; round < ROUNDS; round++) {
		uint64_t counts = kernel->time();

		best = counts < best ? counts : best;
	}
	return best;
}

/* Run at the present vector length. */
static bool run(const struct kernel *kernel)
{
	uint64_t thousandths;

	if (!kernel->check())
		return false;
	thousandths = fastest(kernel) * 1000 / kernel->elements;
	print("%s at %lu bits: %lu.%03lu ticks per element\n", kernel->name, sve_rdvl() * 8,
	      thousandths / 1000, thousandths % 1000);
	return true;
}

static bool run_at_each_length(const struct kernel *kernel)
{
	uint64_t last = 0;
	bool good = true;

	current = kernel->name;
	kernel->prepare();
	for (unsigned int len = 0; len < LENS; len++) {
		if (sve_set_len(len) == last)		/* this LEN selects no other length */
			continue;
		last = sve_rdvl();
		good = run(kernel) && good;
	}
	return good;
}

int main(void)
{
	const char *only = param("kernel");
	bool good = true, found = false;

	if (!sve_enable()) {
		print("SVE: not implemented\n");
		return 0;
	}
	for (const struct kernel *k = kernels; k < kernels + ARRAY_SIZE(kernels); k++) {
		if (only && !param_is("kernel", k->name))
			continue;
		found = true;
		good = run_at_each_length(k) && good;
	}
	if (!found)
		panic("no kernel of that name; there are daxpy, strlen and matmul\n");
	return !good;
}
