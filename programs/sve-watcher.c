/* sve-watcher CPU SEED: checks the patterns that another process holds in all of SVE on one CPU. */

#include "sve-watcher.h"

/*
 * Calls go down: sve-watcher, sve-tracer, sve-holder, sve-hold.S; sve-watcher calls sve-judge too.
 *
 * Lines on standard input, and the answers:
 *
 *   hold MICROSECONDS COUNT          hold NAME=NUMBER...
 *   damage KIND MICROSECONDS COUNT   the same, with the registers changed by ptrace(2) in each hold;
 *                                    KIND is vl, zero, flip or pred
 *   arm                              armed ERRNO: from now on, before each hold, ptrace(2) makes the
 *                                    kernel load the holder's SVE state whole
 *
 * SEED sets the patterns.  At the start it says "ready NAME=NUMBER...", or "failed WHAT ERRNO" and
 * ends.  A holder that dies gives "died SIGNAL CODE", one that gets no time on its CPU "starved".
 *
 * Everything but sve_hold() is compiled for the general registers only.
 */

#define TIMEOUT_S		20		/* beyond a hold's own time */
#define MAX_COUNT		100000

static struct shared *shared;
static unsigned int vl, armed, rounds;

static void damage_it(enum damage *kind, struct tally *tally)
{
	long error = tracer_damage(holder_process(), &shared->hold, *kind, rounds);

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
	holder_begin_hold();
	if (armed) {
		holder_wait_for_state(STATE_AT_GATE, deadline);
		tally->arm_failed |= -tracer_arm(holder_process());
		store_release(&hold->gate, 0);
	}
	if (kind != NO_DAMAGE) {
		holder_wait_for_state(STATE_HOLDING, deadline);
		damage_it(&kind, tally);
	}
	holder_wait_for_state(STATE_OVER, deadline);
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
	long error = traced ? 0 : tracer_seize(holder_process());

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

_Noreturn void start(const long *stack);

_Noreturn void start(const long *stack)
{
	char line[128];

	if (stack[0] != 3)
		fail("arguments", -EINVAL);
	rounds = number_of((const char *)stack[3]);
	shared = holder_start(number_of((const char *)stack[2]));
	holder_wait_for_state(STATE_OVER, now() + TIMEOUT_S * ticks_per_second());
	vl = shared->prctl;
	if (!shared->lengths)
		fail("sve", -EINVAL);
	say("ready vl=%lu lengths=%lu holder=%ld\n", (unsigned long)vl,
	    (unsigned long)shared->lengths, (long)holder_process());
	while (read_line(line, sizeof(line)))
		obey(line);
	holder_kill();
	exit_program(0);
}
