/* SVE at the current exception level: turn it on, and choose the vector length. */
#pragma once

#include "guest.h"

#define LENS			16
#define LEN_MAX			(LENS - 1)

uint64_t sve_rdvl(void);		/* access.S, or the guest's own: the vector length in bytes */

bool sve_enable(void);			/* false: the vCPU has no SVE */
unsigned int sve_set_len(unsigned int len);	/* ZCR_ELx.LEN; returns the length in bytes */
uint64_t sve_zcr(void);			/* ZCR_ELx: ZCR_EL2 at EL2 without VHE, else ZCR_EL1 by name */
