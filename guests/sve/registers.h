/* Z, P and FFR of a vCPU: filled with patterns, and checked to hold them. */
#pragma once

#include "guest.h"

#define LENS			16
#define LEN_MAX			(LENS - 1)

#define PFR0_SVE(pfr0)		((pfr0) >> 32 & 0xf)

uint64_t sve_rdvl(void);		/* access.S: the vector length in bytes */

/* What the registers were filled with, at which length; ever less of it may be left. */
struct filling {
	unsigned int vl;		/* bytes */
	unsigned int kept;		/* bytes: the shortest length since then */
	unsigned int round;		/* tells fillings at the same length apart */
};

bool sve_enable(void);			/* false where there is none */
unsigned int sve_set_len(unsigned int len);	/* ZCR_EL1.LEN; returns the length in bytes */
void sve_fill(const struct filling *filling);
void sve_spoil(const struct filling *filling);	/* as a host would that loses what -p break names */
uint32_t sve_check(const struct filling *filling);	/* registers that are wrong; tells of each */
