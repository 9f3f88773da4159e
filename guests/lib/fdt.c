/* What guests want of the device tree, found in one walk. */

#include "fdt.h"
#include "panic.h"

/* Source: Devicetree Specification v0.4, chapter 5. */
#define FDT_MAGIC		0xd00dfeed
#define FDT_BEGIN_NODE		1
#define FDT_END_NODE		2
#define FDT_PROP		3
#define FDT_NOP			4

struct fdt_header {
	uint32_t magic;
	uint32_t totalsize;
	uint32_t off_dt_struct;
	uint32_t off_dt_strings;
};

static const char *bootargs = "";
static unsigned int cpus;
static bool psci_by_smc, gicv2;

static uint32_t be32(uint32_t value)
{
	return __builtin_bswap32(value);
}

static size_t length(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

static bool starts_with(const char *s, const char *prefix)
{
	while (*prefix)
		if (*s++ != *prefix++)
			return false;
	return true;
}

static bool equal(const char *a, const char *b)
{
	return starts_with(a, b) && length(a) == length(b);
}

static const uint32_t *skip(const uint32_t *cell, size_t bytes)
{
	return cell + (bytes + 3) / 4;
}

void fdt_init(const void *dtb)
{
	const struct fdt_header *header = dtb;
	const char *parent = "";		/* the node below the root we are in */
	int depth = 0;

	if (be32(header->magic) != FDT_MAGIC)
		panic("no device tree at 0x%lx\n", (uintptr_t)dtb);

	const char *strings = (const char *)dtb + be32(header->off_dt_strings);
	const uint32_t *cell = skip(dtb, be32(header->off_dt_struct));

	for (;;) {
		const char *name;

		switch (be32(*cell++)) {
		case FDT_BEGIN_NODE:
			name = (const char *)cell;
			depth++;
			if (depth == 2)
				parent = name;
			else if (depth == 3 && equal(parent, "cpus") && starts_with(name, "cpu@"))
				cpus++;
			cell = skip(cell, length(name) + 1);
			break;
		case FDT_END_NODE:
			depth--;
			break;
		case FDT_PROP:
			name = strings + be32(cell[1]);
			if (depth == 2 && equal(parent, "chosen") && equal(name, "bootargs"))
				bootargs = (const char *)(cell + 2);
			if (depth == 2 && equal(parent, "psci") && equal(name, "method"))
				psci_by_smc = equal((const char *)(cell + 2), "smc");
			if (depth == 2 && starts_with(parent, "intc@") && equal(name, "compatible"))
				gicv2 = equal((const char *)(cell + 2), "arm,cortex-a15-gic");
			cell = skip(cell + 2, be32(cell[0]));
			break;
		case FDT_NOP:
			break;
		default:			/* FDT_END */
			return;
		}
	}
}

unsigned int fdt_count_cpus(void)
{
	return cpus;
}

bool fdt_has_gicv2(void)
{
	return gicv2;
}

bool fdt_psci_is_smc(void)
{
	return psci_by_smc;
}

static bool ends_word(char c)
{
	return c == '\0' || c == ' ';
}

const char *param(const char *name)
{
	size_t n = length(name);

	for (const char *word = bootargs; *word; word++) {
		if (word != bootargs && word[-1] != ' ')
			continue;
		if (!starts_with(word, name))
			continue;
		if (word[n] == '=')
			return word + n + 1;
		if (ends_word(word[n]))
			return "";
	}
	return NULL;
}

bool param_is(const char *name, const char *value)
{
	const char *given = param(name);

	return given && starts_with(given, value) && ends_word(given[length(value)]);
}

uint64_t param_number(const char *name)
{
	const char *s = param(name);
	unsigned int base = 10;
	uint64_t value = 0;

	if (!s || ends_word(*s))
		panic("%s: a number is missing\n", name);
	if (starts_with(s, "0x")) {
		base = 16;
		s += 2;
	}
	for (; !ends_word(*s); s++) {
		unsigned int digit = *s <= '9' ? *s - '0' : (*s | 0x20) - 'a' + 10;

		if (digit >= base)
			panic("%s: not a number: '%c'\n", name, *s);
		value = value * base + digit;
	}
	return value;
}
