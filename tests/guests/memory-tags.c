/* memory-tags: a Linux program whose memory has tags (MTE), which it checks at each line of input. */

#include <linux/mman.h>
#include <linux/prctl.h>

#include "linux.h"

/*
 * It prints "tagged GRANULES random TAG", and for each line "checked GRANULES wrong WRONG signal N":
 * the granules with another tag or content, and the signal that ends a process which reads a granule
 * through a pointer with another tag (SIGSEGV, 11).
 * Source: Linux, Documentation/arch/arm64/memory-tagging-extension.rst.
 */

#define PAGES			64
#define PAGE			4096
#define GRANULE			16
#define GRANULES		(PAGES * PAGE / GRANULE)
#define TAG_SHIFT		56
#define TAG_MASK		(0xful << TAG_SHIFT)
#define NOT_TAG_0		(0xfffeul << PR_MTE_TAG_SHIFT)	/* for IRG */

/* A process's first function: programs/start.S calls it. */
_Noreturn void start(const long *stack);

static uint64_t tag_of(unsigned int granule)
{
	return (granule * 5 + granule / 256 * 7) & 0xf;
}

static uint64_t *pointer_to(uintptr_t base, unsigned int granule, uint64_t tag)
{
	return (uint64_t *)((base + granule * GRANULE) | tag << TAG_SHIFT);
}

static void store_tag(uint64_t *pointer)
{
	asm volatile(".arch armv8.5-a+memtag\n\tstg %0, [%0]" : : "r"(pointer) : "memory");
}

static uint64_t load_tag(uint64_t *pointer)
{
	uint64_t found = (uintptr_t)pointer;

	asm volatile(".arch armv8.5-a+memtag\n\tldg %0, [%0]" : "+r"(found) : : "memory");
	return (found & TAG_MASK) >> TAG_SHIFT;
}

static uint64_t random_tag(uintptr_t base)
{
	uint64_t found;

	asm volatile(".arch armv8.5-a+memtag\n\tirg %0, %1" : "=r"(found) : "r"(base));
	return (found & TAG_MASK) >> TAG_SHIFT;
}

static uint64_t load(const volatile uint64_t *pointer)
{
	return *pointer;
}

static long count_wrong(uintptr_t base)
{
	long wrong = 0;

	for (unsigned int n = 0; n < GRANULES; n++) {
		uint64_t *pointer = pointer_to(base, n, tag_of(n));

		wrong += load_tag(pointer) != tag_of(n) || load(pointer) != n * 3ul + 1;
	}
	return wrong;
}

/* The signal that ends a child which reads through a wrong tag. */
static long signal_of_wrong_tag(uintptr_t base)
{
	int status = 0;
	long child = syscall(__NR_clone, SIGCHLD);

	if (!child) {
		load(pointer_to(base, 7, tag_of(7) ^ 1));
		exit_program(0);
	}
	syscall(__NR_wait4, child, &status);
	return status & 0x7f;
}

_Noreturn void start(const long *stack)
{
	long base;
	char line[16];

	(void)stack;
	if (syscall(__NR_prctl, PR_SET_TAGGED_ADDR_CTRL,
		    PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC | NOT_TAG_0)) {
		say("no memory tags\n");
		exit_program(3);
	}
	base = syscall(__NR_mmap, 0, (long)PAGES * PAGE, PROT_READ | PROT_WRITE | PROT_MTE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (unsigned int n = 0; n < GRANULES; n++) {
		uint64_t *pointer = pointer_to(base, n, tag_of(n));

		store_tag(pointer);
		*pointer = n * 3ul + 1;
	}
	say("tagged %ld random %lu\n", (long)GRANULES, random_tag(base));
	while (read_line(line, sizeof(line)))
		say("checked %ld wrong %ld signal %ld\n", (long)GRANULES, count_wrong(base),
		    signal_of_wrong_tag(base));
	exit_program(0);
}
