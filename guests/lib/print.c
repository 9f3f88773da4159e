/* A printf of the conversions the guests need, and the console's lock. */

#include "print.h"
#include "uart.h"

#define LINE_SIZE		200		/* longer text is cut: stacks are small */

struct text {
	char *buffer;
	size_t size;				/* room, one byte of it for the terminator */
	size_t length;
};

static void put(struct text *text, char c)
{
	if (text->length + 1 < text->size)
		text->buffer[text->length++] = c;
}

static void put_string(struct text *text, const char *s)
{
	while (*s)
		put(text, *s++);
}

static void put_number(struct text *text, uint64_t value, unsigned int base, int width, char pad)
{
	char digits[20];			/* 2^64 - 1 in decimal */
	int n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	for (; width > n; width--)
		put(text, pad);
	while (n)
		put(text, digits[--n]);
}

/* The conversion after the '%' at f, of *args; returns its last character. */
static const char *convert(struct text *text, const char *f, va_list *args)
{
	char pad = *f == '0' ? '0' : ' ';
	int width = 0;
	bool is_long = false;

	for (; *f >= '0' && *f <= '9'; f++)
		width = width * 10 + *f - '0';
	if (*f == 'l') {
		is_long = true;
		f++;
	}
	switch (*f) {
	case 'c':
		put(text, va_arg(*args, int));
		break;
	case 's':
		put_string(text, va_arg(*args, const char *));
		break;
	case 'd': {
		int64_t value = is_long ? va_arg(*args, int64_t) : va_arg(*args, int);

		if (value < 0)
			put(text, '-');
		put_number(text, value < 0 ? -(uint64_t)value : (uint64_t)value, 10, width, pad);
		break;
	}
	case 'u':
	case 'x': {
		uint64_t value = is_long ? va_arg(*args, uint64_t) : va_arg(*args, uint32_t);

		put_number(text, value, *f == 'x' ? 16 : 10, width, pad);
		break;
	}
	default:
		put(text, *f);
	}
	return f;
}

static size_t format_va(char *buffer, size_t size, const char *f, va_list *args)
{
	struct text text = {.buffer = buffer, .size = size};

	for (; *f; f++) {
		if (*f == '%')
			f = convert(&text, f + 1, args);
		else
			put(&text, *f);
	}
	buffer[text.length] = '\0';
	return text.length;
}

size_t format_text(char *buffer, size_t size, const char *format, ...)
{
	va_list args;
	size_t length;

	va_start(args, format);
	length = format_va(buffer, size, format, &args);
	va_end(args);
	return length;
}

void print(const char *format, ...)
{
	static bool lock;
	char line[LINE_SIZE];
	va_list args;
	size_t length;

	va_start(args, format);
	length = format_va(line, sizeof(line), format, &args);
	va_end(args);
	while (__atomic_exchange_n(&lock, true, __ATOMIC_ACQUIRE))
		wfe();
	uart_write(line, length);
	__atomic_store_n(&lock, false, __ATOMIC_RELEASE);
	sev();
}

/* For one who may have died holding the lock. */
void print_unlocked(const char *format, va_list args)
{
	char line[LINE_SIZE];
	va_list copy;

	va_copy(copy, args);
	uart_write(line, format_va(line, sizeof(line), format, &copy));
	va_end(copy);
}
