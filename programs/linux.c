/* The few functions of a C library that a program needs. */

#include <stdarg.h>

#include "linux.h"

#define STDIN			0
#define STDOUT			1

/* Linux 5.10 kills a program whose writable segment is empty in the file. */
static int initialised __attribute__((used)) = 1;

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((char *)to)[i] = ((const char *)from)[i];
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((char *)to)[i] = byte;
	return to;
}

_Noreturn void exit_program(int code)
{
	for (;;)
		syscall(__NR_exit_group, code);
}

struct text {
	char buffer[2048];
	size_t size;
};

static void add(struct text *text, char c)
{
	if (text->size < sizeof(text->buffer))
		text->buffer[text->size++] = c;
}

static void add_number(struct text *text, unsigned long value)
{
	char digits[20];
	int count = 0;

	do
		digits[count++] = '0' + value % 10;
	while (value /= 10);
	while (count)
		add(text, digits[--count]);
}

static void add_signed(struct text *text, long value)
{
	if (value < 0)
		add(text, '-');
	add_number(text, value < 0 ? -(unsigned long)value : (unsigned long)value);
}

/* One write for each call, so that lines of two processes do not mix. */
void say(const char *format, ...)
{
	struct text text = {.size = 0};
	va_list args;

	va_start(args, format);
	for (; *format; format++) {
		if (*format != '%') {
			add(&text, *format);
			continue;
		}
		format++;
		if (*format == 's') {
			for (const char *s = va_arg(args, const char *); *s; s++)
				add(&text, *s);
			continue;
		}
		format++;			/* past the l */
		if (*format == 'd')
			add_signed(&text, va_arg(args, long));
		else
			add_number(&text, va_arg(args, unsigned long));
	}
	va_end(args);
	for (size_t done = 0; done < text.size;) {
		long written = syscall(__NR_write, STDOUT, text.buffer + done, text.size - done);

		if (written <= 0)
			exit_program(1);
		done += written;
	}
}

bool read_line(char *line, size_t size)
{
	size_t length = 0;
	char c;

	while (syscall(__NR_read, STDIN, &c, 1) == 1) {
		if (c == '\n') {
			line[length] = 0;
			return true;
		}
		if (length < size - 1)
			line[length++] = c;
	}
	return false;
}

const char *next_word(char **rest)
{
	char *word = *rest;

	while (*word == ' ')
		word++;
	*rest = word;
	while (**rest && **rest != ' ')
		(*rest)++;
	if (**rest)
		*(*rest)++ = 0;
	return word;
}

unsigned long number_of(const char *word)
{
	unsigned long value = 0;

	while (*word >= '0' && *word <= '9')
		value = value * 10 + *word++ - '0';
	return value;
}
