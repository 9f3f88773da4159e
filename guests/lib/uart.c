/* The console: a 16550A with its FIFOs on.  Source: TI PC16550D (SNLS378C), section 8. */

#include "uart.h"

enum {
	RBR = 0,			/* read: received byte */
	THR = 0,			/* write: byte to send */
	IER = 1,
	IIR = 2,			/* read: the interrupt pending */
	FCR = 2,			/* write */
	LCR = 3,
	MCR = 4,
	LSR = 5,
};

#define IER_RDI			(1 << 0)	/* interrupt while there is input */
#define FCR_ENABLE		(1 << 0)
#define FCR_CLEAR		(3 << 1)	/* both FIFOs */
#define FCR_TRIGGER_14		(3 << 6)
#define FIFO_TRIGGER		14		/* bytes that raise RDI; fewer time out */
#define IIR_ID			0xf
#define IIR_RDI			4
#define LCR_8N1			3
#define MCR_OUT2		(1 << 3)	/* on a PC, the gate of the interrupt line */
#define LSR_DR			(1 << 0)
#define LSR_OE			(1 << 1)	/* overrun: input was lost */
#define LSR_THRE		(1 << 5)	/* the whole transmit FIFO is empty */
#define FIFO_SIZE		16

static bool overrun;

/* Reading LSR clears OE: every reader keeps it. */
static uint8_t read_lsr(void)
{
	uint8_t lsr = readb(UART_BASE + LSR);

	if (lsr & LSR_OE)
		overrun = true;
	return lsr;
}

void uart_init(void)
{
	writeb(0, UART_BASE + IER);
	writeb(LCR_8N1, UART_BASE + LCR);
	writeb(FCR_ENABLE | FCR_CLEAR | FCR_TRIGGER_14, UART_BASE + FCR);
	writeb(MCR_OUT2, UART_BASE + MCR);
}

void uart_write(const char *data, size_t size)
{
	while (size) {
		while (!(read_lsr() & LSR_THRE))
			;
		/* An empty FIFO takes 16 bytes: one status read, which is one exit, for all. */
		for (int room = FIFO_SIZE; room && size; room--, size--)
			writeb(*data++, UART_BASE + THR);
	}
}

void exit_to_host(void)
{
	read_lsr();
}

void uart_irq_enable(bool on)
{
	writeb(on ? IER_RDI : 0, UART_BASE + IER);
}

/*
 * Input, up to `size` bytes of what there is; fewer than `size`: there is no more.  An interrupt
 * of the RDI kind vouches for as many bytes as the trigger level says; LSR for one.
 */
size_t uart_read(char *data, size_t size)
{
	size_t n = 0;

	while (n < size) {
		size_t sure;

		if ((readb(UART_BASE + IIR) & IIR_ID) == IIR_RDI)
			sure = FIFO_TRIGGER;
		else if (read_lsr() & LSR_DR)
			sure = 1;
		else
			break;
		for (; sure && n < size; sure--)
			data[n++] = readb(UART_BASE + RBR);
	}
	return n;
}

bool uart_overrun(void)
{
	read_lsr();
	return overrun;
}
