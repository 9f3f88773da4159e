/* Copying and filling memory. */

#include "memory.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	char *t = to;
	const char *f = from;

	while (size--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	char *t = to;

	while (size--)
		*t++ = byte;
	return to;
}
