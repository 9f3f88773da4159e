/* code-patcher RUNNER-CPU PATCHER-CPU MS SEED SHARED: one process runs code that its parent replaces. */

#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/time.h>
#include <linux/wait.h>

#include "linux.h"

/*
 * The code returns a number.  The runner, on a CPU of its own, calls it again and again.  The patcher
 * replaces the instruction that makes the number, as Arm requires: store, clean the data cache,
 * invalidate the instruction cache, wait for both.  After that, a call that follows a context
 * synchronization event of the runner (an ISB) must return the new number.
 * Source: Arm DDI 0487, B2.7.4.2, "Concurrent modification and execution of instructions".
 *
 * A model that translates code may translate the old instruction at the moment of its replacement.
 * So a round replaces it twice, the second time a random moment after the first, and then checks.
 * With SHARED=1 other code of the page runs too, as in a page of a kernel: a model may watch a page
 * only while it has a translation of code in it.
 *
 * At the end it prints "patched NAME=NUMBER...":
 *
 *   rounds             rounds in MS milliseconds
 *   late               rounds with the old number after three calls
 *   stale              late rounds with the old number after 20 ms and 1000 calls more
 *   controls, caught   rounds without the second store, and those found to be stale
 *
 * or "failed WHAT ERRNO".
 */

#define NOP			0xd503201f
#define RET			0xd65f03c0
#define MOVZ_X0(imm16)		(0xd2800000 | (imm16) << 5)
#define WORDS			40		/* of the code: long enough for a slow translation */
#define SITE			(WORDS / 2)	/* the word to replace */
#define OTHER			512		/* other code of the page */

#define CONTROLS		5
#define ENOUGH			20		/* stale rounds */
#define LONGEST_GAP_US		50		/* between a round's two stores */
#define CALLS_SOON		3
#define CALLS_LATE		1000
#define LATE_US			20000
#define TIMEOUT_S		20

struct shared {
	uint32_t code[1024] __attribute__((aligned(4096)));
	uint64_t calls, number;			/* of the runner: count, and the last result */
};

struct tally {
	unsigned long rounds, late, stale, controls, caught;
};

static struct shared *shared;
static long runner;
static uint64_t hz, random;

static _Noreturn void fail(const char *what, long error)
{
	say("failed %s %ld\n", what, -error);
	if (runner > 0)
		syscall(__NR_kill, runner, SIGKILL);
	exit_program(1);
}

static uint64_t now(void)
{
	uint64_t ticks;

	asm volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(ticks) : : "memory");
	return ticks;
}

static void pin(unsigned long cpu)
{
	uint64_t mask[16] = {0};
	long error;

	mask[cpu / 64 % ARRAY_SIZE(mask)] = 1ull << cpu % 64;
	error = syscall(__NR_sched_setaffinity, 0, sizeof(mask), mask);
	if (error < 0)
		fail("sched_setaffinity", error);
}

static _Noreturn void be_runner(unsigned long cpu, bool calls_other)
{
	uint64_t (*call)(void) = (void *)shared->code;
	void (*call_other)(void) = (void *)&shared->code[OTHER];

	syscall(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	pin(cpu);
	for (;;) {
		if (calls_other)
			call_other();
		asm volatile("isb" : : : "memory");
		shared->number = call();
		store_release(&shared->calls, shared->calls + 1);
	}
}

/* Store an instruction and make it visible to every CPU. */
static void replace(uint32_t *at, uint32_t instruction)
{
	__atomic_store_n(at, instruction, __ATOMIC_RELAXED);
	asm volatile("dc cvau, %0\n\tdsb ish\n\tic ivau, %0\n\tdsb ish\n\tisb" : : "r"(at) : "memory");
}

static uint64_t number_after(uint64_t calls)
{
	uint64_t deadline = now() + TIMEOUT_S * hz, first = load_acquire(&shared->calls);
	int status;

	while (load_acquire(&shared->calls) - first < calls) {
		if (now() < deadline)
			continue;
		if (syscall(__NR_wait4, runner, &status, __WALL | WNOHANG, 0) == runner)
			fail("runner", -ECHILD);
		fail("time", -ETIMEDOUT);
	}
	return shared->number;
}

static bool stays_stale(uint64_t number)
{
	struct __kernel_timespec time = {.tv_nsec = LATE_US * 1000};

	syscall(__NR_nanosleep, &time, 0);
	return number_after(CALLS_LATE) != number;
}

static void spin(void)
{
	uint64_t begun = now(), ticks;

	random = random * 6364136223846793005 + 1442695040888963407;	/* Knuth's MMIX */
	ticks = (random >> 33) % (hz * LONGEST_GAP_US / 1000000 + 1);
	while (now() - begun < ticks)
		;
}

static void one_round(bool control, struct tally *tally)
{
	uint32_t *site = &shared->code[SITE];
	uint64_t number = (*site >> 5 & 0xffff) % 0x8000 + 2;
	bool late, stale;

	replace(site, MOVZ_X0(number - 1));
	spin();
	if (!control)
		replace(site, MOVZ_X0(number));
	late = number_after(CALLS_SOON) != number;
	stale = late && stays_stale(number);
	if (control) {
		tally->controls++;
		tally->caught += stale;
	} else {
		tally->rounds++;
		tally->late += late;
		tally->stale += stale;
	}
}

static void prepare(unsigned long cpu, bool calls_other)
{
	shared = (void *)syscall(__NR_mmap, 0, sizeof(*shared), PROT_READ | PROT_WRITE | PROT_EXEC,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if ((long)shared < 0 && (long)shared > -4096)
		fail("mmap", (long)shared);
	for (int n = 0; n < WORDS; n++)
		replace(&shared->code[n], n == SITE ? MOVZ_X0(0) : NOP);
	replace(&shared->code[WORDS], RET);
	replace(&shared->code[OTHER], RET);
	runner = syscall(__NR_clone, SIGCHLD, 0, 0, 0, 0);
	if (runner < 0)
		fail("clone", runner);
	if (runner == 0)
		be_runner(cpu, calls_other);
}

_Noreturn void start(const long *stack);

_Noreturn void start(const long *stack)
{
	const char *const *words = (const char *const *)(stack + 1);
	struct tally t = {.rounds = 0};
	uint64_t end;

	if (stack[0] != 6)
		fail("arguments", -EINVAL);
	asm volatile("mrs %0, cntfrq_el0" : "=r"(hz));
	random = number_of(words[4]);
	prepare(number_of(words[1]), number_of(words[5]));
	pin(number_of(words[2]));
	for (int n = 0; n < CONTROLS; n++)
		one_round(true, &t);
	end = now() + number_of(words[3]) * hz / 1000;
	while (now() < end && t.stale < ENOUGH)
		one_round(false, &t);
	say("patched rounds=%lu late=%lu stale=%lu controls=%lu caught=%lu\n", t.rounds, t.late, t.stale,
	    t.controls, t.caught);
	syscall(__NR_kill, runner, SIGKILL);
	exit_program(0);
}
