/* The data path in C, without KVM and Python: for this machine, see plain.py. */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "datapath.h"
#include "splitqueue.c"
#include "blk.c"
#include "console.c"

/*
 * In place of getrandom(2), so that Python's side can have the same bytes: at most 100, and at times
 * a signal comes first.
 */
static uint64_t plain_next;

void plain_random_from(uint64_t next)
{
	plain_next = next;
}

void plain_random(uint8_t *buffer, size_t size)
{
	for (size_t n = 0; n < size; n++)
		buffer[n] = plain_next++;
}

static ssize_t plain_getrandom(void *buffer, size_t size, unsigned int flags)
{
	(void)flags;
	if (plain_next % 97 == 13 && errno != EINTR) {
		errno = EINTR;
		return -1;
	}
	errno = 0;
	if (size > 100)
		size = 100;
	plain_random(buffer, size);
	return size;
}

#define getrandom plain_getrandom
#include "rng.c"
