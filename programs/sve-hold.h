/* Input and results of one hold of the SVE registers.  Shared with sve-hold.S. */
#pragma once

#define MAX_VL			256		/* bytes: the architecture's */
#define MAX_PL			(MAX_VL / 8)
#define Z_COUNT			32
#define P_COUNT			16

#define HOLD_IN_Z		0
#define HOLD_OUT_Z		(HOLD_IN_Z + Z_COUNT * MAX_VL)
#define HOLD_IN_P		(HOLD_OUT_Z + Z_COUNT * MAX_VL)
#define HOLD_OUT_P		(HOLD_IN_P + P_COUNT * MAX_PL)
#define HOLD_IN_FFR		(HOLD_OUT_P + P_COUNT * MAX_PL)
#define HOLD_OUT_FFR		(HOLD_IN_FFR + MAX_PL)
#define HOLD_TICKS		(HOLD_OUT_FFR + MAX_PL)
#define HOLD_GATE		(HOLD_TICKS + 8)
#define HOLD_STATE		(HOLD_GATE + 4)
#define HOLD_VL_MIN		(HOLD_STATE + 4)
#define HOLD_VL_MAX		(HOLD_VL_MIN + 8)
#define HOLD_LOOPS		(HOLD_VL_MAX + 8)

#define STATE_IDLE		0
#define STATE_AT_GATE		1		/* spins until the gate is 0 */
#define STATE_HOLDING		2		/* the registers hold their patterns */
#define STATE_OVER		3		/* the registers are stored */

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

struct hold {
	uint8_t in_z[Z_COUNT][MAX_VL], out_z[Z_COUNT][MAX_VL];
	uint8_t in_p[P_COUNT][MAX_PL], out_p[P_COUNT][MAX_PL];
	uint8_t in_ffr[MAX_PL], out_ffr[MAX_PL];
	uint64_t ticks;				/* duration in ticks of CNTVCT_EL0 */
	uint32_t gate, state;
	uint64_t vl_min, vl_max, loops;		/* values of RDVL during the hold, and their number */
};

#define CHECK(field, offset)	_Static_assert(offsetof(struct hold, field) == (offset), #field)
CHECK(out_z, HOLD_OUT_Z);
CHECK(in_p, HOLD_IN_P);
CHECK(out_p, HOLD_OUT_P);
CHECK(in_ffr, HOLD_IN_FFR);
CHECK(out_ffr, HOLD_OUT_FFR);
CHECK(ticks, HOLD_TICKS);
CHECK(gate, HOLD_GATE);
CHECK(state, HOLD_STATE);
CHECK(vl_min, HOLD_VL_MIN);
CHECK(vl_max, HOLD_VL_MAX);
CHECK(loops, HOLD_LOOPS);

void sve_hold(struct hold *hold);
uint64_t sve_rdvl(void);			/* bytes */

#endif
