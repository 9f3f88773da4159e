/*
 * Text on the console: %s %c %d %u %x, with l, 0 and a width.  Output of other vCPUs never
 * interrupts the text of one call.
 */
#pragma once

#include "common.h"

void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_unlocked(const char *format, va_list args);
size_t format_text(char *buffer, size_t size, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
