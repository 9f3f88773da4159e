/* The holder, a process that holds patterns in all of SVE on one CPU, and how its parent drives it. */

#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/time.h>
#include <linux/wait.h>

#include "sve-watcher.h"

#define NAP_US			200

static struct shared *shared;
static int process, orders;			/* its id; the pipe to it */

/* Inside the holder. */

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

static _Noreturn void be_holder(int pipe)
{
	char c;

	syscall(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
	find_lengths();
	store_release(&shared->hold.state, STATE_OVER);
	while (syscall(__NR_read, pipe, &c, 1) == 1)
		hold_once();
	exit_program(0);
}

/* Inside its parent. */

uint64_t now(void)
{
	uint64_t ticks;

	asm volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(ticks) : : "memory");
	return ticks;
}

uint64_t ticks_per_second(void)
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

void holder_kill(void)
{
	syscall(__NR_kill, process, SIGKILL);
}

_Noreturn void fail(const char *what, long error)
{
	say("failed %s %ld\n", what, -error);
	if (process > 0)
		holder_kill();
	exit_program(1);
}

static _Noreturn void report_death(int status)
{
	say("died %ld %ld\n", (long)(status & 0x7f), (long)(status >> 8 & 0xff));
	exit_program(1);
}

static bool has_ended(int status)
{
	return (status & 0xff) != 0x7f;		/* not stopped */
}

void holder_wait_for_stop(void)
{
	int status = 0;

	if (syscall(__NR_wait4, process, &status, __WALL, 0) != process)
		fail("wait4", -ECHILD);
	if (has_ended(status))
		report_death(status);
}

void holder_wait_for_state(uint32_t state, uint64_t deadline)
{
	while (load_acquire(&shared->hold.state) < state) {
		int status = 0;
		long got = syscall(__NR_wait4, process, &status, __WALL | WNOHANG, 0);

		if (got == process && has_ended(status))
			report_death(status);
		if (now() > deadline) {
			say("starved\n");
			holder_kill();
			exit_program(1);
		}
		nap();
	}
}

struct shared *holder_start(unsigned long cpu)
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
	process = syscall(__NR_clone, SIGCHLD, 0, 0, 0, 0);
	if (process < 0)
		fail("clone", process);
	if (process == 0) {
		syscall(__NR_close, pipe[1]);
		be_holder(pipe[0]);
	}
	orders = pipe[1];
	mask[cpu / 64 % ARRAY_SIZE(mask)] = 1ull << cpu % 64;
	error = syscall(__NR_sched_setaffinity, process, sizeof(mask), mask);
	if (error)
		fail("sched_setaffinity", error);
	return shared;
}

int holder_process(void)
{
	return process;
}

void holder_begin_hold(void)
{
	if (syscall(__NR_write, orders, "h", 1) != 1)
		fail("pipe", -EPIPE);
}
