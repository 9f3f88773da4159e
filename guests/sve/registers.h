/* Fill Z, P and FFR of a vCPU with patterns, and check them. */
#pragma once

#include "length.h"

/* A pattern in the registers, and the lengths since then. */
struct filling {
	unsigned int vl;		/* bytes */
	unsigned int kept;		/* bytes: the shortest length since then */
	unsigned int round;		/* differs between fillings at the same length */
};

void sve_fill(const struct filling *filling);
void sve_spoil(const struct filling *filling);	/* spoil the registers that -p break names, like a host that loses them */
uint32_t sve_check(const struct filling *filling);	/* prints and counts wrong registers */
