/* vCPUs by number.  KVM assigns MPIDR Aff0 = n & 0xf, Aff1 = n >> 4 & 0xff, Aff2 = n >> 12. */
#pragma once

#include "common.h"

static inline unsigned int cpu_index(void)
{
	return read_sysreg(TPIDR_EL1);		/* set by start.S */
}

static inline bool cpu_is_at_el2(void)
{
	return read_sysreg(CurrentEL) >> 2 == 2;
}

/* Whether the names of EL1's registers mean them: not so at EL2 without VHE. */
static inline bool cpu_has_el1_names(void)
{
	return !cpu_is_at_el2() || read_sysreg(ID_AA64MMFR1_EL1) >> 8 & 0xf;
}

static inline uint64_t cpu_mpidr(unsigned int index)
{
	return (index & 0xf) | (index >> 4 & 0xff) << 8 | index >> 12 << 16;
}

void cpu_init(void);				/* on every vCPU */
unsigned int cpu_count(void);
