/*
 * Exits that need no Python: accesses that no device claims, those of a 16550A's that change
 * nothing or only send a byte, and the two by which a driver takes note of interrupts.  And the
 * bytes that guests send without an exit, through the VM's ring of coalesced writes.  Mechanism
 * only: what may be settled is published here by the device.
 *
 * A guest's bytes come by two ways: from the ring, and from exits settled here.  Whoever takes
 * one moves all that is in the ring first, with the lock: so they stay in order.
 */

#define PYVMM_PORTS 4
#define PYVMM_LATCHES 64
#define PYVMM_REGIONS 128
#define PYVMM_SENT 4096
#define PYVMM_REGISTERS 8 /* bytes of a 16550A */
#define PYVMM_IER 1
#define PYVMM_IER_BITS 0x0f /* those that can be set */

struct pyvmm_region {
	uint64_t base;
	uint64_t end;
};

struct pyvmm_port {
	uint64_t base; /* 0: there is no such port */
	/*
	 * Byte n is what a read of register n gives, where bit n of byte 0 says that reading it
	 * changes nothing.  Register 0 then gives 0.  One word, so that all of it is of one moment.
	 */
	uint64_t registers;
	uint32_t sends; /* a write of register 0 sends its byte and changes nothing else */
	int32_t patience; /* accesses to settle until Python is to hear of it; 0: now; -1: never */
	uint32_t first;
	uint32_t count;
	uint8_t sent[PYVMM_SENT]; /* by the guest, and not yet taken: a ring */
};

/*
 * Reasons of a device's interrupts: a 32-bit register to read, and behind it another whose ones
 * clear those bits.  The interrupt must be an edge: nothing else changes with them.
 */
struct pyvmm_latch {
	uint64_t address;
	uint32_t bits;
};

struct pyvmm_settler {
	pthread_mutex_t lock; /* over what ports have sent, and the coalesced ring's consuming end */
	struct kvm_coalesced_mmio_ring *ring;
	uint32_t entries;
	uint32_t unclaimed; /* whether accesses that no region claims are settled */
	uint32_t regions;
	struct pyvmm_region region[PYVMM_REGIONS];
	struct pyvmm_port port[PYVMM_PORTS];
	uint32_t latches;
	struct pyvmm_latch latch[PYVMM_LATCHES];
};

static void pyvmm_settler_init(struct pyvmm_settler *settler)
{
	pthread_mutex_init(&settler->lock, NULL);
}

static int pyvmm_send(struct pyvmm_port *port, uint8_t byte)
{
	if (port->count == PYVMM_SENT)
		return 0;
	port->sent[(port->first + port->count) % PYVMM_SENT] = byte;
	__atomic_store_n(&port->count, port->count + 1, __ATOMIC_RELAXED);
	return 1;
}

/* Move what is in the ring to its ports, as far as they have room; with the lock. */
static void pyvmm_collect(struct pyvmm_settler *settler)
{
	struct kvm_coalesced_mmio_ring *ring = settler->ring;
	const struct kvm_coalesced_mmio *entry;
	uint32_t first, n;

	for (first = ring->first; first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);) {
		entry = &ring->coalesced_mmio[first];
		for (n = 0; n < PYVMM_PORTS; n++)
			if (settler->port[n].base == entry->phys_addr)
				break;
		if (n < PYVMM_PORTS && !pyvmm_send(&settler->port[n], entry->data[0]))
			return;
		first = (first + 1) % settler->entries;
		__atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
	}
}

static int pyvmm_ring_is_empty(struct pyvmm_settler *settler)
{
	return __atomic_load_n(&settler->ring->first, __ATOMIC_RELAXED) ==
	       __atomic_load_n(&settler->ring->last, __ATOMIC_ACQUIRE);
}

/* Whether a guest has sent anything that nobody has taken; in the ring it may be any port's. */
static int pyvmm_has_sent(struct pyvmm_settler *settler, int number)
{
	return __atomic_load_n(&settler->port[number].count, __ATOMIC_RELAXED) ||
	       !pyvmm_ring_is_empty(settler);
}

/* Take what a port has sent, oldest first: how many bytes there were, at most size. */
static size_t pyvmm_take(struct pyvmm_settler *settler, int number, uint8_t *bytes, size_t size)
{
	struct pyvmm_port *port = &settler->port[number];
	size_t taken = 0, before;

	pthread_mutex_lock(&settler->lock);
	do {
		pyvmm_collect(settler);
		for (before = taken; port->count && taken < size; taken++) {
			bytes[taken] = port->sent[port->first];
			port->first = (port->first + 1) % PYVMM_SENT;
			__atomic_store_n(&port->count, port->count - 1, __ATOMIC_RELAXED);
		}
	} while (taken > before); /* that may have made room for more of the ring */
	pthread_mutex_unlock(&settler->lock);
	return taken;
}

/*
 * Wait until a guest has sent something: 1; or until stop can be read: 0.  Nothing tells of a
 * coalesced write, so this looks: soon at first, then less and less often.  Times in ms.
 */
static int pyvmm_wait_sent(struct pyvmm_settler *settler, int number, int stop, int soon,
			   int seldom)
{
	struct pollfd poll_stop = { .fd = stop, .events = POLLIN };

	for (int pause = soon;; pause = pause * 2 < seldom ? pause * 2 : seldom) {
		if (poll(&poll_stop, 1, pause) > 0)
			return 0;
		if (pyvmm_has_sent(settler, number))
			return 1;
	}
}

/* Set, or clear, bits of a latch's at once, whoever else does. */
static void pyvmm_latch_set(struct pyvmm_settler *settler, int number, uint32_t bits)
{
	__atomic_fetch_or(&settler->latch[number].bits, bits, __ATOMIC_SEQ_CST);
}

static void pyvmm_latch_clear(struct pyvmm_settler *settler, int number, uint32_t bits)
{
	__atomic_fetch_and(&settler->latch[number].bits, ~bits, __ATOMIC_SEQ_CST);
}

static int pyvmm_settle_latch(struct pyvmm_settler *settler, int number, struct kvm_run *run)
{
	struct pyvmm_latch *latch = &settler->latch[number];
	uint32_t bits;

	if (run->mmio.len != sizeof(bits) ||
	    run->mmio.phys_addr != latch->address + (run->mmio.is_write ? sizeof(bits) : 0))
		return 0;
	if (run->mmio.is_write) {
		memcpy(&bits, run->mmio.data, sizeof(bits));
		pyvmm_latch_clear(settler, number, bits);
	} else {
		bits = __atomic_load_n(&latch->bits, __ATOMIC_SEQ_CST);
		memcpy(run->mmio.data, &bits, sizeof(bits));
	}
	return 1;
}

/* Whether this access is one too many for Python not to hear of it. */
static int pyvmm_impatient(struct pyvmm_port *port)
{
	return __atomic_load_n(&port->patience, __ATOMIC_RELAXED) > 0 &&
	       __atomic_sub_fetch(&port->patience, 1, __ATOMIC_RELAXED) == 0;
}

static int pyvmm_settle_read(struct pyvmm_port *port, uint64_t offset, struct kvm_run *run)
{
	uint64_t registers = __atomic_load_n(&port->registers, __ATOMIC_ACQUIRE);
	uint64_t asked = ((1u << run->mmio.len) - 1) << offset & 0xff;

	if ((registers & asked) != asked || pyvmm_impatient(port))
		return 0;
	registers = (registers & ~0xffull) >> 8 * offset; /* nothing above the last register */
	memcpy(run->mmio.data, &registers, sizeof(registers));
	return 1;
}

/*
 * Whether a write gives IER what it holds, which changes nothing: Linux's console writes 0 before
 * each line and what was there behind it, and that is 0 until its tty is open.
 */
static int pyvmm_keeps_ier(struct pyvmm_port *port, uint64_t offset, uint8_t value)
{
	uint64_t registers = __atomic_load_n(&port->registers, __ATOMIC_ACQUIRE);

	return offset == PYVMM_IER && registers >> PYVMM_IER & 1 &&
	       (value & PYVMM_IER_BITS) == (registers >> 8 * PYVMM_IER & 0xff);
}

static int pyvmm_settle_write(struct pyvmm_settler *settler, struct pyvmm_port *port,
			      uint64_t offset, struct kvm_run *run)
{
	int done;

	if (pyvmm_keeps_ier(port, offset, run->mmio.data[0]))
		return 1;
	if (offset || !__atomic_load_n(&port->sends, __ATOMIC_ACQUIRE) || pyvmm_impatient(port))
		return 0;
	pthread_mutex_lock(&settler->lock);
	pyvmm_collect(settler);
	done = pyvmm_ring_is_empty(settler) && pyvmm_send(port, run->mmio.data[0]);
	pthread_mutex_unlock(&settler->lock);
	return done;
}

/*
 * Settle an MMIO exit, if that can be done without Python.  What counts[2 * n] and the one after
 * it count are the reads and writes of port n; then of latches; those of the last pair, what
 * nobody claims.
 */
static int pyvmm_settle(struct pyvmm_settler *settler, struct kvm_run *run, uint64_t *counts)
{
	uint64_t address = run->mmio.phys_addr;
	struct pyvmm_port *port;
	uint32_t n;

	for (n = 0; n < settler->latches; n++)
		if (pyvmm_settle_latch(settler, n, run)) {
			counts[2 * PYVMM_PORTS + run->mmio.is_write]++;
			return 1;
		}
	for (n = 0; n < PYVMM_PORTS; n++) {
		port = &settler->port[n];
		if (port->base && address - port->base < PYVMM_REGISTERS) {
			if (!(run->mmio.is_write ?
			      pyvmm_settle_write(settler, port, address - port->base, run) :
			      pyvmm_settle_read(port, address - port->base, run)))
				return 0;
			break;
		}
	}
	if (n == PYVMM_PORTS) {
		if (!settler->unclaimed)
			return 0;
		for (uint32_t r = 0; r < settler->regions; r++)
			if (address - settler->region[r].base <
			    settler->region[r].end - settler->region[r].base)
				return 0;
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
		n = PYVMM_PORTS + 1;
	}
	counts[2 * n + run->mmio.is_write]++;
	return 1;
}
