/* virtio-console: a small driver that reads and prints by interrupts. */

#include "guest.h"

#define CONSOLE_ID		3
#define F_SIZE			(1ull << 0)
#define CONFIG_COLS		0x100
#define CONFIG_EMERG_WR		0x108
#define BUFFER_SIZE		4096
#define LINE_SIZE		64
#define EOT			0x04

static char input[VIRTQ_SIZE][BUFFER_SIZE], output[VIRTQ_SIZE][BUFFER_SIZE];
static struct virtq receiveq, transmitq;
static uint32_t free_slots;			/* of transmitq, a bit each */
static uint32_t interrupts;
static uint32_t config_changes;			/* interrupts for a change of the configuration */
static uint32_t size;				/* of the terminal: rows, columns */

void irq(uint32_t intid)
{
	if (intid != SPI(VIRTIO_SPI))
		panic("spurious interrupt %u\n", intid);
	interrupts++;
	if (virtio_acknowledge(VIRTIO_BASE) & VIRTIO_INT_CONFIG) {
		size = readl(VIRTIO_BASE + CONFIG_COLS);
		config_changes++;
	}
}

/* Interrupts are masked except while they are taken; WFI wakes for a masked one: none is missed. */
static void wait_for_interrupt(void)
{
	wfi();
	irq_enable();
	isb();
	irq_disable();
}

static void start(void)
{
	uint64_t wanted = VIRTIO_F_VERSION_1 | F_SIZE;
	uint64_t agreed;
	bool event_idx;

	if (!param("flags"))
		wanted |= VIRTIO_RING_F_EVENT_IDX;
	agreed = virtio_negotiate(VIRTIO_BASE, wanted);
	if (agreed != wanted)
		panic("the device agrees to 0x%lx, not to 0x%lx\n", agreed, wanted);
	event_idx = agreed & VIRTIO_RING_F_EVENT_IDX;
	virtq_init(&receiveq, VIRTIO_BASE, 0, event_idx);
	virtq_init(&transmitq, VIRTIO_BASE, 1, event_idx);
	free_slots = (1u << VIRTQ_SIZE) - 1;
	virtio_start(VIRTIO_BASE);
	for (unsigned int slot = 0; slot < VIRTQ_SIZE; slot++)
		virtq_add(&receiveq, slot, input[slot], BUFFER_SIZE, true);
	virtq_kick(&receiveq, VIRTQ_SIZE);
}

static void collect_output(void)
{
	uint32_t written;

	while (virtq_has_used(&transmitq))
		free_slots |= 1u << virtq_take(&transmitq, &written);
}

static void console_write(const char *data, size_t size)
{
	while (size) {
		size_t n = size < BUFFER_SIZE ? size : BUFFER_SIZE;
		unsigned int slot;

		for (collect_output(); !free_slots; collect_output())
			wait_for_interrupt();
		slot = __builtin_ctz(free_slots);
		free_slots &= ~(1u << slot);
		memcpy(output[slot], data, n);
		virtq_add(&transmitq, slot, output[slot], n, false);
		virtq_kick(&transmitq, 1);
		data += n;
		size -= n;
	}
}

#define console_print(...) do {							\
	char line_[160];							\
	console_write(line_, format_text(line_, sizeof(line_), __VA_ARGS__));	\
} while (0)

/* The next input, in a buffer that give_back() returns. */
static unsigned int next_input(uint32_t *size)
{
	while (!virtq_has_used(&receiveq))
		wait_for_interrupt();
	return virtq_take(&receiveq, size);
}

static void give_back(unsigned int slot)
{
	virtq_add(&receiveq, slot, input[slot], BUFFER_SIZE, true);
	virtq_kick(&receiveq, 1);
}

/* FNV-1a, 64 bits, which a test can compute too. */
static uint64_t hash(uint64_t sum, const char *data, size_t size)
{
	while (size--)
		sum = (sum ^ (uint8_t)*data++) * 0x100000001b3;
	return sum;
}

#define HASH_START		0xcbf29ce484222325

/* Echo until EOT, with a reset of the device in between on request. */
static void echo(void)
{
	uint64_t bytes = 0;

	for (bool eot = false; !eot;) {
		uint32_t size, n;
		unsigned int slot = next_input(&size);

		for (n = 0; n < size && input[slot][n] != EOT; n++)
			;
		eot = n < size;
		console_write(input[slot], n);
		bytes += n;
		give_back(slot);
		if (param("restart") && !eot) {
			start();	/* input so far is lost with the old rings */
			console_print("again\n");
		}
	}
	console_print("echo: %lu bytes, %u interrupts\n", bytes, interrupts);
}

/* Print so many bytes, in lines that begin with their offset. */
static void flood(uint64_t size)
{
	static char block[BUFFER_SIZE + 1];

	for (uint64_t at = 0; at < size; at += BUFFER_SIZE) {
		uint64_t n = size - at < BUFFER_SIZE ? size - at : BUFFER_SIZE;

		for (size_t line = 0; line < BUFFER_SIZE; line += LINE_SIZE)
			format_text(block + line, LINE_SIZE + 1, "%015lu %047u\n", at + line, 0);
		console_write(block, n);
	}
}

/* Read so many bytes, and print their hash; pause sometimes, so that the sender must wait. */
static void drain(uint64_t size)
{
	uint64_t sum = HASH_START;
	uint64_t pause = read_sysreg(CNTFRQ_EL0) / 100;

	for (uint64_t got = 0; got < size;) {
		uint32_t n;
		unsigned int slot = next_input(&n);

		sum = hash(sum, input[slot], n);
		if ((got ^ (got + n)) >> 20)
			for (uint64_t since = counter(); counter() - since < pause;)
				;
		got += n;
		give_back(slot);
	}
	console_print("hash 0x%lx\n", sum);
}

/* Offer a chain with a loop: the device stops, reports it by an interrupt, and can be reset. */
static void break_rules(void)
{
	uint32_t before = config_changes;

	transmitq.desc[0].next = 0;
	virtq_add(&transmitq, 0, output[0], 1, false);
	transmitq.desc[0].flags = 1;
	virtq_kick(&transmitq, 1);
	while (config_changes == before)
		wait_for_interrupt();
	print("the device %s\n", virtio_needs_reset(VIRTIO_BASE) ? "needs a reset" : "goes on");
	start();
	console_print("and works again\n");
}

static void show_size(void)
{
	console_print("%u columns, %u rows\n", size & 0xffff, size >> 16);
}

int main(void)
{
	if (!virtio_probe(VIRTIO_BASE, CONSOLE_ID)) {
		print("no virtio console here: pyvmm run --console virtio has one\n");
		return 1;
	}
	writel('!', VIRTIO_BASE + CONFIG_EMERG_WR);
	writel('\n', VIRTIO_BASE + CONFIG_EMERG_WR);
	gic_init();
	gic_init_cpu();
	gic_set_edge(SPI(VIRTIO_SPI));
	gic_enable(SPI(VIRTIO_SPI));
	start();

	if (param("flood")) {
		flood(param_number("flood"));
	} else if (param("drain")) {
		drain(param_number("drain"));
	} else if (param("break")) {
		break_rules();
	} else if (param("resize")) {
		for (uint32_t seen = 0; seen < 2; seen++) {
			while (config_changes == seen)
				wait_for_interrupt();
			show_size();
		}
	} else {
		console_print("virtio-console: ready\n");
		echo();
	}
	for (collect_output(); free_slots != (1u << VIRTQ_SIZE) - 1; collect_output())
		wait_for_interrupt();
	return 0;
}
