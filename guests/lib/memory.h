/* What a compiler may call even in a freestanding program. */
#pragma once

#include "common.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);
