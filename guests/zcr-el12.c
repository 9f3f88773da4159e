/* zcr-el12: a guest that sets ZCR_EL1.LEN by commands, to show whether that affects the host. */

#include "sve/registers.h"

/*
 * Letters on the console, and the replies:
 *
 *   A to P   LEN becomes 0 to 15     len LEN zcr ZCR_EL1 vl BYTES
 *   t        LEN alternates between 0 and 15 until the next letter     toggle
 *   f        fill Z, P and FFR at the present length             filled vl BYTES zcr ZCR_EL1
 *   c        check them: a line about each wrong one, then
 *                                                                 checked WRONG vl BYTES zcr ZCR_EL1
 *   q        the guest ends, with 0
 *
 * The guest uses SVE all the time, between exits to the VMM and between interrupts of the host, so
 * that KVM has to save its registers each time.
 */

#define SPINS			3000

static void spin(void)
{
	for (volatile int i = 0; i < SPINS; i++)
		;
}

static void set_len(unsigned int len)
{
	unsigned int vl = sve_set_len(len);

	print("len %u zcr %lu vl %u\n", len, sve_zcr(), vl);
}

static void fill(struct filling *filling)
{
	filling->vl = filling->kept = sve_rdvl();
	filling->round++;
	sve_fill(filling);
	print("filled vl %u zcr %lu\n", filling->vl, sve_zcr());
}

static void check(const struct filling *filling)
{
	uint32_t wrong = sve_check(filling);

	print("checked %u vl %lu zcr %lu\n", wrong, sve_rdvl(), sve_zcr());
}

int main(void)
{
	struct filling filling = {.round = 0};
	bool toggles = false;
	unsigned int turn = 0;

	if (!sve_enable()) {
		print("no sve\n");
		return 1;
	}
	print("ready\n");
	for (;;) {
		char letter;

		if (toggles)
			sve_set_len(turn++ % 2 ? LEN_MAX : 0);
		sve_rdvl();
		spin();
		if (!uart_read(&letter, 1))
			continue;
		toggles = letter == 't';
		if (toggles)
			print("toggle\n");
		else if (letter >= 'A' && letter < 'A' + LENS)
			set_len(letter - 'A');
		else if (letter == 'f')
			fill(&filling);
		else if (letter == 'c')
			check(&filling);
		else if (letter == 'q')
			return 0;
	}
}
