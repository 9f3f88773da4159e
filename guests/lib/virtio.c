/* The modern virtio-mmio transport and split queues.  Source: VIRTIO 1.2, 2.7, 3.1.1 and 4.2.2. */

#include "memory.h"
#include "panic.h"
#include "virtio.h"

#define MAGIC_VALUE		0x000
#define MAGIC			0x74726976	/* "virt" */
#define VERSION			0x004
#define DEVICE_ID		0x008
#define DEVICE_FEATURES		0x010
#define DEVICE_FEATURES_SEL	0x014
#define DRIVER_FEATURES		0x020
#define DRIVER_FEATURES_SEL	0x024
#define QUEUE_SEL		0x030
#define QUEUE_NUM_MAX		0x034
#define QUEUE_NUM		0x038
#define QUEUE_READY		0x044
#define QUEUE_NOTIFY		0x050
#define INTERRUPT_STATUS	0x060
#define INTERRUPT_ACK		0x064
#define STATUS			0x070
#define QUEUE_DESC		0x080
#define QUEUE_DRIVER		0x090
#define QUEUE_DEVICE		0x0a0

#define S_ACKNOWLEDGE		0x01
#define S_DRIVER		0x02
#define S_DRIVER_OK		0x04
#define S_FEATURES_OK		0x08
#define S_NEEDS_RESET		0x40

#define DESC_F_WRITE		2
#define USED_F_NO_NOTIFY	1

#define barrier()		__atomic_thread_fence(__ATOMIC_SEQ_CST)
#define load(x)			__atomic_load_n(&(x), __ATOMIC_RELAXED)
#define store(x, value)		__atomic_store_n(&(x), value, __ATOMIC_RELAXED)

bool virtio_probe(uintptr_t device, uint32_t id)
{
	return readl(device + MAGIC_VALUE) == MAGIC && readl(device + VERSION) == 2 &&
	       readl(device + DEVICE_ID) == id;
}

static void add_status(uintptr_t device, uint32_t bits)
{
	writel(readl(device + STATUS) | bits, device + STATUS);
}

uint64_t virtio_negotiate(uintptr_t device, uint64_t wanted)
{
	uint64_t agreed = 0;

	writel(0, device + STATUS);
	while (readl(device + STATUS))
		;
	add_status(device, S_ACKNOWLEDGE);
	add_status(device, S_DRIVER);
	for (uint32_t word = 0; word < 2; word++) {
		uint32_t accepted;

		writel(word, device + DEVICE_FEATURES_SEL);
		accepted = readl(device + DEVICE_FEATURES) & wanted >> 32 * word;
		writel(word, device + DRIVER_FEATURES_SEL);
		writel(accepted, device + DRIVER_FEATURES);
		agreed |= (uint64_t)accepted << 32 * word;
	}
	add_status(device, S_FEATURES_OK);
	if (!(readl(device + STATUS) & S_FEATURES_OK))
		panic("virtio: the device does not take the features 0x%lx\n", agreed);
	return agreed;
}

void virtio_start(uintptr_t device)
{
	add_status(device, S_DRIVER_OK);
}

bool virtio_needs_reset(uintptr_t device)
{
	return readl(device + STATUS) & S_NEEDS_RESET;
}

uint32_t virtio_acknowledge(uintptr_t device)
{
	uint32_t reasons = readl(device + INTERRUPT_STATUS);

	writel(reasons, device + INTERRUPT_ACK);
	return reasons;
}

static void place(uintptr_t address, const void *area)
{
	writel((uintptr_t)area, address);
	writel((uintptr_t)area >> 32, address + 4);
}

void virtq_init(struct virtq *queue, uintptr_t device, uint32_t index, bool event_idx)
{
	memset(queue, 0, sizeof(*queue));
	queue->device = device;
	queue->index = index;
	queue->event_idx = event_idx;
	writel(index, device + QUEUE_SEL);
	if (readl(device + QUEUE_READY) || readl(device + QUEUE_NUM_MAX) < VIRTQ_SIZE)
		panic("virtio: queue %u is in use, or too small\n", index);
	writel(VIRTQ_SIZE, device + QUEUE_NUM);
	place(device + QUEUE_DESC, queue->desc);
	place(device + QUEUE_DRIVER, &queue->avail);
	place(device + QUEUE_DEVICE, &queue->used);
	dsb();
	writel(1, device + QUEUE_READY);
}

void virtq_add(struct virtq *queue, unsigned int slot, void *buffer, uint32_t size, bool write)
{
	uint16_t idx = queue->avail.idx;

	queue->desc[slot].addr = (uintptr_t)buffer;
	queue->desc[slot].len = size;
	queue->desc[slot].flags = write ? DESC_F_WRITE : 0;
	queue->avail.ring[idx % VIRTQ_SIZE] = slot;
	barrier();				/* the index vouches for all that */
	store(queue->avail.idx, idx + 1);
}

void virtq_kick(struct virtq *queue, uint16_t added)
{
	uint16_t new = queue->avail.idx;
	bool wanted;

	barrier();				/* the index is seen before we look */
	if (queue->event_idx)
		wanted = (uint16_t)(new - load(queue->used.avail_event) - 1) < added;
	else
		wanted = !(load(queue->used.flags) & USED_F_NO_NOTIFY);
	if (wanted) {
		dsb();
		writel(queue->index, queue->device + QUEUE_NOTIFY);
	}
}

bool virtq_has_used(struct virtq *queue)
{
	store(queue->avail.used_event, queue->seen);
	barrier();				/* the wish is seen before we look */
	return load(queue->used.idx) != queue->seen;
}

unsigned int virtq_take(struct virtq *queue, uint32_t *written)
{
	unsigned int at = queue->seen % VIRTQ_SIZE;
	unsigned int slot;

	barrier();				/* the entry is read after the index */
	slot = queue->used.ring[at].id;
	if (slot >= VIRTQ_SIZE)
		panic("virtio: queue %u gives back %u\n", queue->index, slot);
	*written = queue->used.ring[at].len;
	queue->seen++;
	return slot;
}
