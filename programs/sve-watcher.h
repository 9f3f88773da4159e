/* sve-watcher's parts: the holder of the registers, its tracer, and the judge of what it stored. */
#pragma once

#include "linux.h"
#include "sve-hold.h"

/* Shared by the two processes. */
struct shared {
	struct hold hold;
	uint64_t rdvl, prctl;			/* bytes, just after a hold */
	uint64_t switches;			/* involuntary ones, of the hold */
	int64_t cpu, cpu_before, cpu_after;	/* where it should be, and where it was */
	uint64_t lengths;			/* bit n: (n + 1) * 128 bits can be had by prctl() */
};

/* The result of a number of holds. */
struct tally {
	unsigned long holds, bad;		/* bad: any of the next six */
	unsigned long truncated, zeroed, foreign, low, p, ffr;
	unsigned long vl_min, vl_max, rdvl, prctl;	/* bytes */
	unsigned long loops, loops_min;
	unsigned long interrupted, moved;	/* holds with others on the CPU, or on a wrong CPU */
	unsigned long damaged, caught, missed;
	unsigned long arm_failed;		/* an errno */
};

enum damage { NO_DAMAGE, DAMAGE_VL, DAMAGE_ZERO, DAMAGE_FLIP, DAMAGE_PRED };

/* sve-judge.c */
void judge_prepare(struct hold *hold, unsigned int vl, unsigned int round);
void judge(const struct shared *shared, unsigned int vl, enum damage done, struct tally *tally);

/* sve-tracer.c: 0, or a negated errno */
long tracer_seize(int process);
long tracer_arm(int process);			/* have the kernel itself load SVE state and ZCR_EL2 */
long tracer_damage(int process, const struct hold *hold, enum damage kind, unsigned int round);

/* sve-holder.c */
_Noreturn void fail(const char *what, long error);	/* kills the holder too */
uint64_t now(void);				/* ticks of CNTVCT_EL0 */
uint64_t ticks_per_second(void);
struct shared *holder_start(unsigned long cpu);
int holder_process(void);			/* its process id */
void holder_begin_hold(void);
void holder_wait_for_state(uint32_t state, uint64_t deadline);	/* its death ends the program */
void holder_wait_for_stop(void);		/* under ptrace(2); its death ends the program */
void holder_kill(void);
