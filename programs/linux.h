/* Linux's system calls for programs without a C library: no code here uses SVE. */
#pragma once

#include <asm/unistd.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))

#define SIGKILL			9
#define SIGCHLD			17

/* The result, or the negated errno.  Source: arch/arm64/include/asm/syscall.h, syscall(2). */
static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 asm("x8") = number;
	register long x0 asm("x0") = a;
	register long x1 asm("x1") = b;
	register long x2 asm("x2") = c;
	register long x3 asm("x3") = d;
	register long x4 asm("x4") = e;
	register long x5 asm("x5") = f;

	asm volatile("svc #0"
		     : "+r"(x0)
		     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
		     : "memory");
	return x0;
}

#define syscall_(number, a, b, c, d, e, f, ...)					\
	syscall6(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define syscall(...)		syscall_(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

#define load_acquire(p)		__atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, v)	__atomic_store_n(p, v, __ATOMIC_RELEASE)

/* Functions that a compiler may call even in a freestanding program. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);

_Noreturn void exit_program(int code);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));	/* %s %ld %lu */
bool read_line(char *line, size_t size);	/* of standard input; false at its end */
const char *next_word(char **rest);
unsigned long number_of(const char *word);
