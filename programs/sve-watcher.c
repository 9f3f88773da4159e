/* sve-watcher CPU SEED: one process holds patterns in all of SVE on a CPU, its parent looks at them. */

#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/time.h>
#include <linux/wait.h>
#include <linux/mman.h>

#include "sve-watcher.h"

/*
 * Lines on standard input, and the answers:
 *
 *   hold MICROSECONDS COUNT          hold NAME=NUMBER...
 *   damage KIND MICROSECONDS COUNT   the same, with the registers changed by ptrace(2) in each hold;
 *                                    KIND is vl, zero, flip or pred
 *   arm                              armed ERRNO: from now on, before each hold, ptrace(2) makes the
 *                                    kernel load the holder's SVE state whole
 *
 * SEED sets the patterns.  At the start it says "ready NAME=NUMBER...", or "failed WHAT ERRNO" and ends.  A holder that dies
 * gives "died SIGNAL CODE", one that gets no time on its CPU "starved".
 *
 * The parent, all of this but sve_hold(), is compiled for the general registers only.
 */

#define TIMEOUT_S		20		/* beyond a hold's own time */
#define NAP_US			200
#define MAX_COUNT		100000

static struct shared *shared;
static int holder, order;			/* its process id; the pipe to it */
static unsigned int vl, armed, rounds;

static uint64_t now(void)
{
	uint64_t ticks;

	asm volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(ticks) : : "memory");
	return ticks;
}

static uint64_t ticks_per_second(void)
{
	uint64_t hz;

	asm volatile("mrs %0, cntfrq_el0" : "=r"(hz));
	return hz;
}

static void nap(void)
{
	struct __kernel_timespec time = {.tv_nsec = NAP_US * 1000};

	syscall(__NR_nanosleep, &time, 0);
}

static _Noreturn void fail(const char *what, long error)
{
	say("failed %s %ld\n", what, -error);
	if (holder > 0)
		syscall(__NR_kill, holder, SIGKILL);
	exit_program(1);
}

/* The holder.  */

static int64_t current_cpu(void)
{
	uint32_t cpu = 0;

	syscall(__NR_getcpu, &cpu, 0, 0);
	return cpu;
}

static uint64_t involuntary_switches(void)
{
	struct rusage usage;

	syscall(__NR_getrusage, RUSAGE_SELF, &usage);
	return usage.ru_nivcsw;
}

static void hold_once(void)
{
	uint64_t switches = involuntary_switches();

	shared->cpu_before = current_cpu();
	sve_hold(&shared->hold);
	shared->rdvl = sve_rdvl();
	shared->cpu_after = current_cpu();
	shared->switches = involuntary_switches() - switches;
	shared->prctl = syscall(__NR_prctl, PR_SVE_GET_VL) & PR_SVE_VL_LEN_MASK;
	syscall(__NR_prctl, PR_SVE_SET_VL, MAX_VL);	/* a vl damage may have left it short */
	store_release(&shared->hold.state, STATE_OVER);
}

static void find_lengths(void)
{
	for (unsigned int n = MAX_VL / 16; n > 0; n--) {
		long got = syscall(__NR_prctl, PR_SVE_SET_VL, n * 16);

		if (got > 0 && (got & PR_SVE_VL_LEN_MASK) == n * 16)
			shared->lengths |= 1u << (n - 1);
	}
	syscall(__NR_prctl, PR_SVE_SET_VL, MAX_VL);
	shared->prctl = syscall(__NR_prctl, PR_SVE_GET_VL) & PR_SVE_VL_LEN_MASK;
}

static _Noreturn void be_holder(int orders)
{
	char c;

	syscall(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	find_lengths();
	store_release(&shared->hold.state, STATE_OVER);
	while (syscall(__NR_read, orders, &c, 1) == 1)
		hold_once();
	exit_program(0);
}

/* Its parent.  */

static _Noreturn void tell_death(int status)
{
	say("died %ld %ld\n", (long)(status & 0x7f), (long)(status >> 8 & 0xff));
	exit_program(1);
}

static bool has_ended(int status)
{
	return (status & 0xff) != 0x7f;		/* not stopped */
}

void wait_for_stop(void)
{
	int status = 0;

	if (syscall(__NR_wait4, holder, &status, __WALL, 0) != holder)
		fail("wait4", -ECHILD);
	if (has_ended(status))
		tell_death(status);
}

static void wait_for_state(uint32_t state, uint64_t deadline)
{
	while (load_acquire(&shared->hold.state) < state) {
		int status = 0;
		long got = syscall(__NR_wait4, holder, &status, __WALL | WNOHANG, 0);

		if (got == holder && has_ended(status))
			tell_death(status);
		if (now() > deadline) {
			say("starved\n");
			syscall(__NR_kill, holder, SIGKILL);
			exit_program(1);
		}
		nap();
	}
}

static void damage_it(enum damage *kind, struct tally *tally)
{
	long error = tracer_damage(holder, &shared->hold, *kind, rounds);

	if (error == 0)
		return;
	if (error != -EAGAIN)
		fail("ptrace", error);
	*kind = NO_DAMAGE;
	tally->missed++;
}

static void one_hold(uint64_t ticks, enum damage kind, struct tally *tally)
{
	uint64_t deadline = now() + ticks + TIMEOUT_S * ticks_per_second();
	struct hold *hold = &shared->hold;

	judge_prepare(hold, vl, ++rounds);
	hold->ticks = ticks;
	hold->gate = armed;
	if (syscall(__NR_write, order, "h", 1) != 1)
		fail("pipe", -EPIPE);
	if (armed) {
		wait_for_state(STATE_AT_GATE, deadline);
		tally->arm_failed |= -tracer_arm(holder);
		store_release(&hold->gate, 0);
	}
	if (kind != NO_DAMAGE) {
		wait_for_state(STATE_HOLDING, deadline);
		damage_it(&kind, tally);
	}
	wait_for_state(STATE_OVER, deadline);
	judge(shared, vl, kind, tally);
}

static void holds(unsigned long microseconds, unsigned long count, enum damage kind)
{
	struct tally t = {.holds = 0};
	uint64_t ticks = ticks_per_second() * microseconds / 1000000;

	for (unsigned long n = 0; n < count && n < MAX_COUNT; n++)
		one_hold(ticks, kind, &t);
	say("hold holds=%lu bad=%lu truncated=%lu zeroed=%lu foreign=%lu low=%lu p=%lu ffr=%lu "
	    "vl_min=%lu vl_max=%lu rdvl=%lu prctl=%lu loops=%lu loops_min=%lu interrupted=%lu "
	    "moved=%lu damaged=%lu caught=%lu missed=%lu arm_failed=%lu\n",
	    t.holds, t.bad, t.truncated, t.zeroed, t.foreign, t.low, t.p, t.ffr, t.vl_min, t.vl_max,
	    t.rdvl, t.prctl, t.loops, t.loops_min, t.interrupted, t.moved, t.damaged, t.caught,
	    t.missed, t.arm_failed);
}

static bool equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static enum damage damage_of(const char *word)
{
	static const char *const names[] = {"none", "vl", "zero", "flip", "pred"};

	for (unsigned int kind = 0; kind < ARRAY_SIZE(names); kind++)
		if (equal(word, names[kind]))
			return kind;
	fail("damage", -EINVAL);
}

static void be_traced(void)
{
	static bool traced;
	long error = traced ? 0 : tracer_seize(holder);

	if (error)
		fail("ptrace", error);
	traced = true;
}

static void obey(char *line)
{
	const char *word = next_word(&line);
	enum damage kind = NO_DAMAGE;

	if (equal(word, "arm")) {
		be_traced();
		armed = 1;
		say("armed 0\n");
		return;
	}
	if (equal(word, "damage")) {
		kind = damage_of(next_word(&line));
		be_traced();
	} else if (!equal(word, "hold")) {
		fail("line", -EINVAL);
	}
	unsigned long microseconds = number_of(next_word(&line));

	holds(microseconds, number_of(next_word(&line)), kind);
}

static void start_holder(unsigned long cpu)
{
	uint64_t mask[16] = {0};
	int pipe[2];
	long error;

	shared = (void *)syscall(__NR_mmap, 0, sizeof(*shared), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if ((long)shared < 0 && (long)shared > -4096)
		fail("mmap", (long)shared);
	shared->cpu = cpu;
	error = syscall(__NR_pipe2, pipe, 0);
	if (error)
		fail("pipe2", error);
	holder = syscall(__NR_clone, SIGCHLD, 0, 0, 0, 0);
	if (holder < 0)
		fail("clone", holder);
	if (holder == 0) {
		syscall(__NR_close, pipe[1]);
		be_holder(pipe[0]);
	}
	order = pipe[1];
	mask[cpu / 64 % ARRAY_SIZE(mask)] = 1ull << cpu % 64;
	error = syscall(__NR_sched_setaffinity, holder, sizeof(mask), mask);
	if (error)
		fail("sched_setaffinity", error);
}

_Noreturn void start(const long *stack);

_Noreturn void start(const long *stack)
{
	char line[128];

	if (stack[0] != 3)
		fail("arguments", -EINVAL);
	rounds = number_of((const char *)stack[3]);
	start_holder(number_of((const char *)stack[2]));
	wait_for_state(STATE_OVER, now() + TIMEOUT_S * ticks_per_second());
	vl = shared->prctl;
	if (!shared->lengths)
		fail("sve", -EINVAL);
	say("ready vl=%lu lengths=%lu holder=%ld\n", (unsigned long)vl,
	    (unsigned long)shared->lengths, (long)holder);
	while (read_line(line, sizeof(line)))
		obey(line);
	syscall(__NR_kill, holder, SIGKILL);
	exit_program(0);
}
