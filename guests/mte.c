/* mte: memory keeps its tags across pauses and snapshots, and a wrong tag is a fault. */

#include "guest.h"

/*
 * The guest gives each granule of PAGES pages a tag and a content, checks both, and checks that an
 * access by another tag is a fault.  Then it reads commands from its console:
 *
 *   t   check again, and print the result          q   the same, and end
 */

#define PAGES			64
#define PAGE			4096
#define GRANULE			16
#define TAG_SHIFT		56
#define TAG_MASK		(0xful << TAG_SHIFT)

#define PFR1_MTE(pfr1)		((pfr1) >> 8 & 0xf)
#define DABT_CUR		0x25		/* ESR_EL1.EC: a data abort from the same EL */
#define DFSC_TAG		0x11		/* a tag check fault */

void mte_enable(void);				/* mte-tags.S */
void mte_store(uintptr_t pointer);
uintptr_t mte_load(uintptr_t pointer);
uint64_t mte_faults(uintptr_t pointer);

static uint8_t pages[PAGES][PAGE] __attribute__((aligned(PAGE)));

/* Every fourth page has no tags. */
static uint64_t tag_of(unsigned int page, unsigned int granule)
{
	return page % 4 == 3 ? 0 : (page * 7 + granule * 5 + granule / 16) & 0xf;
}

static uintptr_t pointer_to(unsigned int page, unsigned int granule, uint64_t tag)
{
	return (uintptr_t)&pages[page][granule * GRANULE] | tag << TAG_SHIFT;
}

static void tag_pages(void)
{
	for (unsigned int page = 0; page < PAGES; page++) {
		for (unsigned int granule = 0; granule < PAGE / GRANULE; granule++) {
			uintptr_t pointer = pointer_to(page, granule, tag_of(page, granule));

			mte_store(pointer);
			writeq(pointer * 3, pointer);
		}
	}
}

static unsigned int check_page(unsigned int page)
{
	unsigned int wrong = 0;

	for (unsigned int granule = 0; granule < PAGE / GRANULE; granule++) {
		uint64_t tag = tag_of(page, granule);
		uintptr_t pointer = pointer_to(page, granule, tag);

		if ((mte_load(pointer) & TAG_MASK) != tag << TAG_SHIFT)
			wrong++;
		else if (readq(pointer) != pointer * 3)
			wrong++;
	}
	return wrong;
}

static bool check(void)
{
	uint64_t esr = mte_faults(pointer_to(0, 1, tag_of(0, 1) ^ 1));
	unsigned int wrong = 0;

	for (unsigned int page = 0; page < PAGES; page++)
		wrong += check_page(page);
	if (esr >> 26 != DABT_CUR || (esr & 0x3f) != DFSC_TAG) {
		print("an access by a wrong tag: ESR_EL1=0x%lx, expected a tag check fault\n", esr);
		return false;
	}
	if (wrong) {
		print("%u of %u granules have another tag or content\n", wrong,
		      PAGES * PAGE / GRANULE);
		return false;
	}
	print("%u granules have their tags, and a wrong tag is a fault\n", PAGES * PAGE / GRANULE);
	return true;
}

static char command(void)
{
	char c;

	while (!uart_read(&c, 1))
		wfe();
	return c;
}

int main(void)
{
	bool good;
	char c;

	if (PFR1_MTE(read_sysreg(ID_AA64PFR1_EL1)) < 2) {
		print("no memory tags: ID_AA64PFR1_EL1=0x%lx\n", read_sysreg(ID_AA64PFR1_EL1));
		return 3;
	}
	mte_enable();
	tag_pages();
	good = check();
	if (param("once"))
		return !good;
	do {
		c = command();
		if (c == 't' || c == 'q')
			good &= check();
	} while (c != 'q');
	return !good;
}
