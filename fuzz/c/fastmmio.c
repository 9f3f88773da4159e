/*
 * MMIO exits that pyvmm/kvm/fastmmio.c completes, with a guest and a driver that do anything.
 *
 * The input is a list of operations.  KVM's part, the ring of coalesced writes and struct kvm_run,
 * is played as the kernel does it.  The oracle: each UART's bytes leave in the guest's order.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <linux/kvm.h>

#include "../../pyvmm/kvm/fastmmio.c"

static uint32_t raised[PYVMM_UARTS]; /* the interrupt lines: a change must be one */

static int pyvmm_irq_line(int vm, uint32_t irq, int level)
{
	if (vm != -1 || irq >= PYVMM_UARTS || (level != 0 && level != 1) || raised[irq] == (uint32_t)level)
		abort();
	raised[irq] = level;
	return 0;
}

#define PAGE 4096
#define ENTRIES ((PAGE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))
#define BASE 0x1000000ull
#define STEP 0x1000
#define SENT (1 << 16)

static const uint8_t *data;
static size_t left;

static uint8_t byte(void)
{
	if (!left)
		return 0;
	left--;
	return *data++;
}

static uint64_t word(void)
{
	uint64_t value = 0;

	for (int n = 0; n < 8; n++)
		value |= (uint64_t)byte() << 8 * n;
	return value;
}

static void require(int condition)
{
	if (!condition)
		abort();
}

/* What the guest has transmitted by each UART, and how much of it has been taken. */
static uint8_t sent[PYVMM_UARTS][SENT];
static size_t count[PYVMM_UARTS], taken[PYVMM_UARTS];

static void send(int uart, uint8_t value)
{
	if (count[uart] < SENT)
		sent[uart][count[uart]] = value;
	count[uart]++;
}

static int uart_of(uint64_t address)
{
	for (int n = 0; n < PYVMM_UARTS; n++)
		if (address == BASE + n * STEP)
			return n;
	return -1;
}

/* Write by KVM's ring, as coalesced_mmio_write() in virt/kvm/coalesced_mmio.c; 0: it is full. */
static int coalesce(struct kvm_coalesced_mmio_ring *ring, uint64_t address, uint8_t value)
{
	struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[ring->last];

	if ((ring->last + 1) % ENTRIES == ring->first)
		return 0;
	entry->phys_addr = address;
	entry->len = 1;
	memset(entry->data, 0xee, sizeof(entry->data));
	entry->data[0] = value;
	ring->last = (ring->last + 1) % ENTRIES;
	return 1;
}

static uint64_t address_of(uint8_t kind)
{
	switch (kind & 7) {
	case 0:
		return word();
	case 1:
		return BASE + (kind >> 3) * STEP + 0x60; /* InterruptStatus, and what follows it */
	case 2:
		return BASE + (kind >> 3) * STEP + 0x64;
	case 3:
		return BASE - 1 + (kind >> 3);
	default:
		return BASE + (kind >> 3) % PYVMM_UARTS * STEP + (byte() & 15);
	}
}

static void take(struct pyvmm_fast_mmio *fast, int uart, size_t size)
{
	uint8_t bytes[PYVMM_TX_SIZE];
	size_t found;

	if (size > sizeof(bytes))
		size = sizeof(bytes);
	found = pyvmm_take_tx(fast, uart, bytes, size);
	require(found <= size && taken[uart] + found <= count[uart]);
	for (size_t n = 0; n < found; n++, taken[uart]++)
		if (taken[uart] < SENT)
			require(bytes[n] == sent[uart][taken[uart]]);
}

static void access_mmio(struct pyvmm_fast_mmio *fast, struct kvm_run *run)
{
	static const uint32_t lengths[] = { 1, 2, 4, 8 };
	uint64_t counts[2 * (PYVMM_UARTS + 4)] = { 0 }, unclaimed = 0, total = 0;
	uint8_t kind = byte();
	int uart, done, sends;

	run->mmio.phys_addr = address_of(byte());
	run->mmio.len = lengths[kind & 3];
	run->mmio.is_write = kind >> 2 & 1;
	for (int n = 0; n < 8; n++)
		run->mmio.data[n] = byte();
	uart = uart_of(run->mmio.phys_addr);
	sends = uart >= 0 && fast->uart[uart].base && run->mmio.is_write &&
		(fast->uart[uart].complete_thr || fast->uart[uart].lent);
	done = pyvmm_complete_mmio(fast, run, counts, &unclaimed);
	if (done && sends)
		send(uart, run->mmio.data[0]);
	for (size_t n = 0; n < 2 * (PYVMM_UARTS + 4); n++)
		total += counts[n];
	require(total == (uint64_t)!!done);
	require(!unclaimed || (done && unclaimed == run->mmio.phys_addr));
}

/* Lend a transmitter's interrupt, or take it back: then the line is as its registers say. */
static void lend(struct pyvmm_fast_mmio *fast, int number, int emptied)
{
	struct pyvmm_uart *uart = &fast->uart[number];
	int state = pyvmm_retake_uart(fast, number);

	if (state < 0) {
		raised[number] = emptied && uart->registers >> 8 & PYVMM_UART_IER_THRI;
		pyvmm_lend_uart(fast, number, emptied, raised[number]);
		return;
	}
	require(uart->complete_thr == (state >> 8 & 1 || !(state & PYVMM_UART_IER_THRI)));
	require((state >> 9 & 1) == (int)raised[number]);
	require(raised[number] == ((state >> 8 & 1) && state & PYVMM_UART_IER_THRI));
}

static void publish(struct pyvmm_fast_mmio *fast)
{
	int number = byte() % PYVMM_UARTS;
	struct pyvmm_uart *uart = &fast->uart[number];

	pyvmm_retake_uart(fast, number); /* as Python does before it changes anything */
	uart->registers = word();
	uart->complete_thr = byte() & 1;
	uart->exits_left = (int8_t)byte() % 8;
}

static void setup(struct pyvmm_fast_mmio *fast)
{
	uint8_t uarts = byte();

	pyvmm_fast_mmio_init(fast);
	fast->entries = ENTRIES;
	fast->complete_unclaimed = byte() & 1;
	fast->regions = byte() % (PYVMM_REGIONS + 1);
	for (uint32_t n = 0; n < fast->regions; n++) {
		fast->region[n].base = BASE + n * STEP;
		fast->region[n].end = fast->region[n].base + (n & 1 ? 0x200 : 8);
	}
	for (int n = 0; n < PYVMM_UARTS; n++) {
		if (uarts >> n & 1)
			fast->uart[n].base = BASE + n * STEP;
		fast->uart[n].vm = -1;
		fast->uart[n].irq = n;
		fast->uart[n].exits_first = 16;
		raised[n] = 0;
	}
	fast->isrs = byte() % (PYVMM_ISRS + 1);
	for (uint32_t n = 0; n < fast->isrs; n++)
		fast->isr[n].address = BASE + n * STEP + 0x60;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct pyvmm_fast_mmio *fast = calloc(1, sizeof(*fast));
	struct kvm_coalesced_mmio_ring *ring = calloc(1, PAGE);
	struct kvm_run *run = calloc(1, sizeof(*run));

	data = bytes;
	left = size;
	memset(count, 0, sizeof(count));
	memset(taken, 0, sizeof(taken));
	fast->ring = ring;
	setup(fast);
	while (left) {
		uint8_t operation = byte(), value;
		int uart = operation >> 4 & (PYVMM_UARTS - 1);

		switch (operation & 7) {
		case 0:
		case 1:
			access_mmio(fast, run);
			break;
		case 2: /* many coalesced writes */
			for (int n = byte(); n >= 0; n--) {
				value = byte() + n;
				if (coalesce(ring, BASE + uart * STEP, value) && fast->uart[uart].base)
					send(uart, value);
			}
			break;
		case 3:
			publish(fast);
			break;
		case 4:
			take(fast, uart, word() & 0x1fff);
			if (operation & 8)
				lend(fast, uart, byte() & 1);
			break;
		case 5:
			pyvmm_isr_set(fast, byte() % PYVMM_ISRS, word());
			break;
		case 6:
			pyvmm_isr_clear(fast, byte() % PYVMM_ISRS, word());
			break;
		case 7:
			if (!pyvmm_has_tx(fast, uart))
				require(count[uart] == taken[uart]);
			break;
		}
		require(ring->first < ENTRIES && fast->uart[uart].tx_count <= PYVMM_TX_SIZE);
	}
	for (int round = 0; round < PYVMM_UARTS; round++)
		for (int n = 0; n < PYVMM_UARTS; n++)
			take(fast, n, PYVMM_TX_SIZE);
	pthread_mutex_destroy(&fast->lock);
	free(run);
	free(ring);
	free(fast);
	return 0;
}

#ifdef FUZZ_FILES /* without libFuzzer: run once for each file */
#include <stdio.h>

int main(int argc, char **argv)
{
	static uint8_t input[1 << 20];

	for (int n = 1; n < argc; n++) {
		FILE *file = fopen(argv[n], "rb");

		if (!file)
			return 2;
		LLVMFuzzerTestOneInput(input, fread(input, 1, sizeof(input), file));
		fclose(file);
	}
	return 0;
}
#endif
