/* echo: input arrives by interrupts, WFI waits for it, and no byte of long input is lost. */

#include "guest.h"

#define EOT			0x04
#define LINE_SIZE		128

/* The interrupt fills it, main() empties it; the indices wrap only at 2^32. */
static struct {
	char bytes[1024];
	volatile uint32_t head, tail;
} ring;

static volatile bool held_back;			/* the ring was full: the rest stays in the FIFO */
static uint32_t interrupts;

static uint32_t ring_used(void)
{
	return ring.head - ring.tail;
}

void irq(uint32_t intid)
{
	char bytes[32];
	size_t room, n;

	if (intid != SPI(UART_SPI))
		panic("spurious interrupt %u\n", intid);
	interrupts++;
	do {
		room = sizeof(ring.bytes) - ring_used();
		if (room > sizeof(bytes))
			room = sizeof(bytes);
		n = uart_read(bytes, room);
		for (size_t i = 0; i < n; i++)
			ring.bytes[ring.head++ % sizeof(ring.bytes)] = bytes[i];
	} while (room && n == room);
	if (!room) {
		held_back = true;
		uart_irq_enable(false);
	}
}

static char next_byte(void)
{
	char byte;

	/* Interrupts are masked from the check to WFI, which wakes for a masked one: none is missed. */
	irq_disable();
	while (!ring_used()) {
		if (held_back) {
			held_back = false;
			uart_irq_enable(true);
		}
		wfi();
		irq_enable();
		isb();
		irq_disable();
	}
	irq_enable();
	byte = ring.bytes[ring.tail % sizeof(ring.bytes)];
	ring.tail++;
	return byte;
}

static bool ends_line(char c)
{
	return c == '\n' || c == '\r';
}

/* Read a line with its end, or the next piece of a long one; *eot: it was the last. */
static size_t next_piece(char *line, bool *eot)
{
	size_t n = 0;

	do {
		char byte = next_byte();

		if (byte == EOT) {
			*eot = true;
			break;
		}
		line[n++] = byte;
	} while (n < LINE_SIZE && !ends_line(line[n - 1]));
	return n;
}

static bool is_quit(const char *line, size_t n)
{
	return n == 5 && line[0] == 'q' && line[1] == 'u' && line[2] == 'i' && line[3] == 't' &&
	       ends_line(line[4]);
}

int main(void)
{
	uint64_t bytes = 0, lines = 0;
	char line[LINE_SIZE];
	bool eot = false;
	bool fresh = true;			/* at the start of a line */

	gic_init();
	gic_init_cpu();
	gic_enable(SPI(UART_SPI));
	uart_irq_enable(true);

	while (!eot) {
		size_t n = next_piece(line, &eot);

		if (fresh && is_quit(line, n))
			break;
		uart_write(line, n);
		bytes += n;
		if (n) {
			fresh = ends_line(line[n - 1]);
			lines += fresh;
		}
	}

	uart_irq_enable(false);
	print("%secho: %lu bytes, %lu lines, %u interrupts%s\n", fresh ? "" : "\n", bytes, lines,
	      interrupts, uart_overrun() ? ": input lost, LSR.OE was set" : "");
	return uart_overrun();
}
