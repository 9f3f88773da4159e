/*
 * The device's side of a split virtqueue, without Python.
 *
 * Python's Virtqueue (devices/virtio/queue.py) is the specification: the same rings give the same
 * chains, the same used ring and the same interrupts.  tests/devices/virtio/test_datapath.py
 * compares them.  A chain that breaks the rules stays in the ring, for Python to report.
 *
 * Nothing here knows KVM.  The driver's input is untrusted, and may change at any time: each value
 * is loaded once, checked, and only then used.
 *
 * Source: VIRTIO 1.2, section 2.7; linux/virtio_ring.h
 */

#define PYVMM_CHAIN_BYTES (1ull << 32) /* VIRTIO 1.2, 2.7.5.2 */

#define PYVMM_DESC_NEXT 1
#define PYVMM_DESC_WRITE 2
#define PYVMM_DESC_INDIRECT 4
#define PYVMM_NO_INTERRUPT 1
#define PYVMM_NO_NOTIFY 1

#define PYVMM_INT_VRING 1 /* of InterruptStatus: used buffers */

/* Rings as 16-bit words: flags, idx, the entries, the other side's event index */
#define PYVMM_FLAGS 0
#define PYVMM_IDX 1
#define PYVMM_RING 2

struct pyvmm_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

static int pyvmm_region_has(const struct pyvmm_memory_region *region, uint64_t gpa, uint64_t length)
{
	uint64_t offset = gpa - region->base, block;
	const uint8_t *plugged = (const uint8_t *)(uintptr_t)region->plugged;

	if (gpa < region->base || offset > region->size || length > region->size - offset)
		return 0;
	if (!plugged)
		return 1;
	for (block = offset / region->block; block * region->block < offset + length; block++)
		if (!__atomic_load_n(&plugged[block], __ATOMIC_RELAXED))
			return 0;
	return 1;
}

/* Returns the address of guest memory in this process, or NULL unless one region has all of it. */
static void *pyvmm_guest_memory(const struct pyvmm_split_queue *queue, uint64_t gpa,
				uint64_t length, int writes)
{
	const struct pyvmm_memory_region *region = queue->region, *end = region + queue->regions;
	uint64_t offset, page;
	uint8_t *log = NULL;

	while (region < end && !pyvmm_region_has(region, gpa, length))
		region++;
	if (region == end)
		return NULL;
	offset = gpa - region->base;
	if (writes && region->log)
		log = (uint8_t *)(uintptr_t)*(const uint64_t *)(uintptr_t)region->log;
	if (log && length)
		for (page = offset / queue->page_size; page <= (offset + length - 1) / queue->page_size;
		     page++)
			__atomic_store_n(&log[page], 1, __ATOMIC_RELAXED);
	return (void *)(uintptr_t)(region->host + offset);
}

/* Find the rings in this process.  Returns whether they are in guest memory. */
int pyvmm_queue_place(struct pyvmm_split_queue *queue)
{
	uint64_t size = queue->size;

	queue->desc_at = (uintptr_t)pyvmm_guest_memory(queue, queue->desc, 16 * size, 0);
	queue->avail_at = (uintptr_t)pyvmm_guest_memory(queue, queue->driver, 6 + 2 * size, 0);
	queue->used_at = (uintptr_t)pyvmm_guest_memory(queue, queue->device, 6 + 8 * size, 0);
	return queue->desc_at && queue->avail_at && queue->used_at;
}

static uint16_t *pyvmm_avail(const struct pyvmm_split_queue *queue, uint32_t word)
{
	return (uint16_t *)(uintptr_t)queue->avail_at + word;
}

static uint16_t *pyvmm_used(const struct pyvmm_split_queue *queue, uint32_t word)
{
	return (uint16_t *)(uintptr_t)queue->used_at + word;
}

/* Returns whether there are chains, or PYVMM_BROKEN.  Sets waiting. */
static int pyvmm_queue_has_chains(struct pyvmm_split_queue *queue)
{
	uint16_t index = __atomic_load_n(pyvmm_avail(queue, PYVMM_IDX), __ATOMIC_ACQUIRE);
	uint16_t waiting = index - queue->last_avail;

	if (waiting > queue->size)
		return PYVMM_BROKEN;
	queue->waiting = waiting;
	return waiting > 0;
}

/* Ask for a kick at the next chain.  Returns as pyvmm_queue_has_chains does. */
int pyvmm_queue_enable_kicks(struct pyvmm_split_queue *queue)
{
	if (queue->event_idx)
		__atomic_store_n(pyvmm_used(queue, PYVMM_RING + 4 * queue->size), queue->last_avail,
				 __ATOMIC_RELAXED);
	else
		__atomic_store_n(pyvmm_used(queue, PYVMM_FLAGS), 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* else both sides might sleep */
	return pyvmm_queue_has_chains(queue);
}

/* Suppress kicks; with EVENT_IDX an event index in the past does so already. */
void pyvmm_queue_disable_kicks(struct pyvmm_split_queue *queue)
{
	if (!queue->event_idx)
		__atomic_store_n(pyvmm_used(queue, PYVMM_FLAGS), PYVMM_NO_NOTIFY, __ATOMIC_RELAXED);
}

/* Add a descriptor's buffer.  Returns 1, PYVMM_BROKEN or PYVMM_TOO_LONG. */
static int pyvmm_chain_add(const struct pyvmm_split_queue *queue, struct pyvmm_chain *chain,
			   const struct pyvmm_desc *desc)
{
	int writes = desc->flags & PYVMM_DESC_WRITE;
	struct iovec *buffer;
	void *memory;

	if (!writes && chain->writable)
		return PYVMM_BROKEN;
	if (!desc->len)
		return 1;
	if (chain->readable_size + chain->writable_size + desc->len > PYVMM_CHAIN_BYTES)
		return PYVMM_BROKEN;
	memory = pyvmm_guest_memory(queue, desc->addr, desc->len, writes);
	if (!memory)
		return PYVMM_BROKEN;
	if (chain->readable + chain->writable == PYVMM_CHAIN_BUFFERS)
		return PYVMM_TOO_LONG;
	buffer = &chain->buffer[chain->readable + chain->writable];
	buffer->iov_base = memory;
	buffer->iov_len = desc->len;
	*(writes ? &chain->writable : &chain->readable) += 1;
	*(writes ? &chain->writable_size : &chain->readable_size) += desc->len;
	return 1;
}

/* Follow a chain's descriptors.  Returns 1, PYVMM_BROKEN or PYVMM_TOO_LONG. */
static int pyvmm_chain_walk(const struct pyvmm_split_queue *queue, struct pyvmm_chain *chain)
{
	const char *table = (const char *)(uintptr_t)queue->desc_at;
	uint32_t entries = queue->size, index = chain->head, indirect = 0;
	struct pyvmm_desc desc;
	int added;

	for (uint32_t n = 0; n < queue->size + 1; n++) { /* one more for an indirect table's */
		if (index >= entries)
			return PYVMM_BROKEN;
		memcpy(&desc, table + (size_t)index * sizeof(desc), sizeof(desc));
		__asm__ volatile("" : "+m"(desc) : : "memory"); /* do not load it again */
		if (desc.flags & PYVMM_DESC_INDIRECT) {
			if (indirect || !queue->indirect || desc.flags & PYVMM_DESC_NEXT || !desc.len ||
			    desc.len % sizeof(desc))
				return PYVMM_BROKEN;
			table = pyvmm_guest_memory(queue, desc.addr, desc.len, 0);
			if (!table)
				return PYVMM_BROKEN;
			entries = desc.len / sizeof(desc);
			index = 0;
			indirect = 1;
			continue;
		}
		added = pyvmm_chain_add(queue, chain, &desc);
		if (added < 0 || !(desc.flags & PYVMM_DESC_NEXT))
			return added;
		index = desc.next;
	}
	return PYVMM_BROKEN; /* a loop, or too many descriptors */
}

/*
 * Take the next chain.  Returns 1, or 0 without one.  With PYVMM_BROKEN or PYVMM_TOO_LONG the chain
 * stays in the ring.
 */
int pyvmm_queue_pop(struct pyvmm_split_queue *queue, struct pyvmm_chain *chain)
{
	int found = queue->waiting ? 1 : pyvmm_queue_has_chains(queue);

	if (found <= 0)
		return found;
	chain->head = __atomic_load_n(
		pyvmm_avail(queue, PYVMM_RING + queue->last_avail % queue->size), __ATOMIC_RELAXED);
	chain->readable = chain->writable = 0;
	chain->readable_size = chain->writable_size = 0;
	found = pyvmm_chain_walk(queue, chain);
	if (found > 0) {
		queue->last_avail++;
		queue->waiting--;
	}
	return found;
}

/* Do as pyvmm_queue_pop, but ask for a kick if there is no chain. */
static int pyvmm_queue_next(struct pyvmm_split_queue *queue, struct pyvmm_chain *chain)
{
	int found = queue->waiting ? 1 : pyvmm_queue_enable_kicks(queue);

	return found > 0 ? pyvmm_queue_pop(queue, chain) : found;
}

/* Put the chain of the last pop back into the ring. */
static void pyvmm_queue_put_back(struct pyvmm_split_queue *queue)
{
	queue->last_avail--;
	queue->waiting++;
}

/* Return a chain with that many bytes written to it. */
void pyvmm_queue_push(struct pyvmm_split_queue *queue, uint16_t head, uint32_t written)
{
	uint32_t entry[2] = { head, written };

	memcpy(pyvmm_used(queue, PYVMM_RING + 4 * (queue->used_idx % queue->size)), entry,
	       sizeof(entry));
	__atomic_store_n(pyvmm_used(queue, PYVMM_IDX), ++queue->used_idx, __ATOMIC_RELEASE);
}

/* Returns whether the driver wants an interrupt for the chains pushed since the last call. */
int pyvmm_queue_needs_interrupt(struct pyvmm_split_queue *queue)
{
	uint16_t old = queue->signalled, event;

	queue->signalled = queue->used_idx;
	if (old == queue->used_idx)
		return 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* else both sides might sleep */
	if (!queue->event_idx)
		return !(__atomic_load_n(pyvmm_avail(queue, PYVMM_FLAGS), __ATOMIC_RELAXED) &
			 PYVMM_NO_INTERRUPT);
	event = __atomic_load_n(pyvmm_avail(queue, PYVMM_RING + queue->size), __ATOMIC_RELAXED);
	return (uint16_t)(queue->used_idx - event - 1) < (uint16_t)(queue->used_idx - old);
}

/* Interrupt the driver for pushed chains, if it wants that. */
static void pyvmm_queue_signal(struct pyvmm_split_queue *queue, uint64_t isr, int irq)
{
	uint64_t one = 1;

	if (!pyvmm_queue_needs_interrupt(queue))
		return;
	__atomic_fetch_or((uint32_t *)(uintptr_t)isr, PYVMM_INT_VRING, __ATOMIC_SEQ_CST);
	while (write(irq, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}
