/* Fill Z, P and FFR of a vCPU with patterns, and check them. */
#pragma once

#include "guest.h"

#define LENS			16
#define LEN_MAX			(LENS - 1)

#define PFR0_SVE(pfr0)		((pfr0) >> 32 & 0xf)

uint64_t sve_rdvl(void);		/* access.S: the vector length in bytes */

/* A pattern in the registers, and the lengths since then. */
struct filling {
	unsigned int vl;		/* bytes */
	unsigned int kept;		/* bytes: the shortest length since then */
	unsigned int round;		/* differs between fillings at the same length */
};

bool sve_enable(void);			/* false: the vCPU has no SVE */
unsigned int sve_set_len(unsigned int len);	/* ZCR_EL1.LEN; returns the length in bytes */
void sve_fill(const struct filling *filling);
void sve_spoil(const struct filling *filling);	/* spoil the registers that -p break names, like a host that loses them */
uint32_t sve_check(const struct filling *filling);	/* prints and counts wrong registers */
