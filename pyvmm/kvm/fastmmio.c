/*
 * MMIO exits that C completes without Python:
 *
 *	accesses that no device claims;
 *	16550A UARTs: reads without a side effect, transmitted bytes, writes that change nothing, and
 *	the transmitter's interrupt (IER, IIR) while it is lent;
 *	virtio-mmio: InterruptStatus and InterruptACK, which a driver uses at each interrupt;
 *	virtio-mmio: doorbells whose device has a data path for exits;
 *	the PL031 real-time clock: reads, and writes that change nothing, until its alarm is due.
 *
 * C also takes the bytes that guests write to a UART without an exit, from KVM's ring of coalesced
 * writes.  Devices publish here the accesses that C may complete.  The picture in
 * machine/fastpath.py shows the owner of a UART's registers at each moment.
 *
 * A UART's bytes arrive in the ring and by exits.  A vCPU that completes such an exit moves the
 * bytes in the ring first, under the lock.  So bytes stay in order.
 */

#define PYVMM_UARTS 4
#define PYVMM_ISRS 64
#define PYVMM_REGIONS 128
#define PYVMM_TX_SIZE 4096

/* Registers; tests/devices/test_fastmmio.py compares them with the devices' tables. */
#define PYVMM_UART_SIZE 8 /* bytes of registers */
#define PYVMM_UART_THR 0
#define PYVMM_UART_IER 1
#define PYVMM_UART_IER_BITS 0x0f /* the writable bits */
#define PYVMM_UART_IER_THRI 0x02
#define PYVMM_UART_IIR 2
#define PYVMM_UART_IIR_NO_INT 0x01
#define PYVMM_UART_IIR_THRI 0x02
#define PYVMM_UART_IIR_FIFO_ENABLED 0xc0
#define PYVMM_VIRTIO_STATUS_TO_ACK 4 /* from InterruptStatus to InterruptACK */
#define PYVMM_VIRTIO_NOTIFY_TO_STATUS 0x10 /* from QueueNotify to InterruptStatus */
#define PYVMM_RTC_SIZE 0x20 /* bytes of registers, without the identification */
#define PYVMM_RTC_DR 0x00
#define PYVMM_RTC_IMSC 0x10

struct pyvmm_region {
	uint64_t base;
	uint64_t end;
};

struct pyvmm_uart {
	uint64_t base; /* 0: no UART */
	/*
	 * Bit n of byte 0 says that a read of register n has no side effect.  Byte n is then the
	 * value that it returns; register 0 returns 0.  One word, so that a read sees one moment.
	 */
	uint64_t registers;
	uint32_t complete_thr; /* a write of THR transmits its byte and changes nothing else */
	int32_t exits_left; /* exits until Python is called; 0: call it now; -1: never */
	uint32_t tx_first;
	uint32_t tx_count;
	uint8_t tx[PYVMM_TX_SIZE]; /* transmitted bytes that Python has not taken: a ring */
	/*
	 * The transmitter's interrupt.  While it is lent, C owns IER (byte 1 of registers) and these:
	 * no other interrupt can be pending, and each write of THR is completed.  Used with the lock.
	 */
	uint32_t lent;
	uint32_t thr_emptied; /* the condition of THRI */
	uint32_t raised; /* the interrupt line */
	uint32_t irq; /* its number for KVM_IRQ_LINE */
	int32_t vm; /* a file descriptor */
	int32_t exits_first; /* exits_left, once THRI is disabled */
};

/*
 * The interrupt status register of a virtio device.  The interrupt must be edge-triggered: then a
 * read or an acknowledgement of the bits has no other effect.
 */
struct pyvmm_isr {
	uint64_t address; /* of InterruptStatus */
	uint32_t bits;
	uint32_t always; /* bits that each read has; written while no vCPU runs */

	/* A doorbell that C may serve; serve returns whether it did.  It stays so while vCPUs run. */
	uint32_t queue; /* the value that rings it */
	int (*serve)(void *device); /* or NULL */
	void *device;
};

/*
 * A PL031.  All times are seconds since 1970.  Each member is one word, and a guest's access uses
 * one beside alarm_at, so that it sees the clock before or after a change, never between.
 */
struct pyvmm_rtc {
	uint64_t base; /* 0: no clock */
	int64_t offset; /* the guest's clock minus the host's */
	int64_t alarm_at; /* from this time of the host on, Python handles each access */
	uint32_t registers[PYVMM_RTC_SIZE / 4]; /* the values of the others */
};

struct pyvmm_fast_mmio {
	/* over every tx ring, the consumer's end of the coalesced ring, and what is lent */
	pthread_mutex_t lock;
	struct kvm_coalesced_mmio_ring *ring;
	uint32_t entries;
	uint32_t complete_unclaimed; /* whether C completes accesses outside all regions */
	uint32_t regions;
	struct pyvmm_region region[PYVMM_REGIONS];
	struct pyvmm_uart uart[PYVMM_UARTS];
	uint32_t isrs;
	struct pyvmm_isr isr[PYVMM_ISRS];
	struct pyvmm_rtc rtc;
};

static int pyvmm_irq_line(int vm, uint32_t irq, int level);

static void pyvmm_fast_mmio_init(struct pyvmm_fast_mmio *fast)
{
	pthread_mutex_init(&fast->lock, NULL);
}

static int pyvmm_put_tx(struct pyvmm_uart *uart, uint8_t byte)
{
	if (uart->tx_count == PYVMM_TX_SIZE)
		return 0;
	uart->tx[(uart->tx_first + uart->tx_count) % PYVMM_TX_SIZE] = byte;
	__atomic_store_n(&uart->tx_count, uart->tx_count + 1, __ATOMIC_RELAXED);
	return 1;
}

/* Move coalesced writes to their UARTs, until one of these has no room; with the lock. */
static void pyvmm_drain_coalesced(struct pyvmm_fast_mmio *fast)
{
	struct kvm_coalesced_mmio_ring *ring = fast->ring;
	const struct kvm_coalesced_mmio *entry;
	uint32_t first, n;

	for (first = ring->first; first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);) {
		entry = &ring->coalesced_mmio[first];
		for (n = 0; n < PYVMM_UARTS; n++)
			if (fast->uart[n].base == entry->phys_addr)
				break;
		if (n < PYVMM_UARTS && !pyvmm_put_tx(&fast->uart[n], entry->data[0]))
			return;
		first = (first + 1) % fast->entries;
		__atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
	}
}

static int pyvmm_coalesced_is_empty(struct pyvmm_fast_mmio *fast)
{
	return __atomic_load_n(&fast->ring->first, __ATOMIC_RELAXED) ==
	       __atomic_load_n(&fast->ring->last, __ATOMIC_ACQUIRE);
}

/* Returns whether bytes wait for Python; those in the coalesced ring may be of another UART. */
static int pyvmm_has_tx(struct pyvmm_fast_mmio *fast, int number)
{
	return __atomic_load_n(&fast->uart[number].tx_count, __ATOMIC_RELAXED) ||
	       !pyvmm_coalesced_is_empty(fast);
}

/* Take a UART's transmitted bytes, oldest first.  Returns the number, at most size. */
static size_t pyvmm_take_tx(struct pyvmm_fast_mmio *fast, int number, uint8_t *bytes, size_t size)
{
	struct pyvmm_uart *uart = &fast->uart[number];
	size_t taken = 0, before;

	pthread_mutex_lock(&fast->lock);
	do {
		pyvmm_drain_coalesced(fast);
		for (before = taken; uart->tx_count && taken < size; taken++) {
			bytes[taken] = uart->tx[uart->tx_first];
			uart->tx_first = (uart->tx_first + 1) % PYVMM_TX_SIZE;
			__atomic_store_n(&uart->tx_count, uart->tx_count - 1, __ATOMIC_RELAXED);
		}
	} while (taken > before); /* there may be room now for more of the ring */
	pthread_mutex_unlock(&fast->lock);
	return taken;
}

/*
 * Wait until bytes wait for Python, and return 1; or until stop is readable, and return 0.
 * KVM does not signal a coalesced write, so this polls: after min_ms at first, then less often, up
 * to max_ms.
 */
static int pyvmm_wait_tx(struct pyvmm_fast_mmio *fast, int number, int stop, int min_ms,
			 int max_ms)
{
	struct pollfd poll_stop = { .fd = stop, .events = POLLIN };

	for (int pause = min_ms;; pause = pause * 2 < max_ms ? pause * 2 : max_ms) {
		if (poll(&poll_stop, 1, pause) > 0)
			return 0;
		if (pyvmm_has_tx(fast, number))
			return 1;
	}
}

/* Set, or clear, bits of an interrupt status register; atomic. */
static void pyvmm_isr_set(struct pyvmm_fast_mmio *fast, int number, uint32_t bits)
{
	__atomic_fetch_or(&fast->isr[number].bits, bits, __ATOMIC_SEQ_CST);
}

static void pyvmm_isr_clear(struct pyvmm_fast_mmio *fast, int number, uint32_t bits)
{
	__atomic_fetch_and(&fast->isr[number].bits, ~bits, __ATOMIC_SEQ_CST);
}

/* Serve the doorbell of a queue in C, or no more (NULL); while no vCPU runs. */
static void pyvmm_set_doorbell(struct pyvmm_fast_mmio *fast, int number, uint32_t queue,
			       int (*serve)(void *device), void *device)
{
	struct pyvmm_isr *isr = &fast->isr[number];

	isr->queue = queue;
	isr->serve = serve;
	isr->device = device;
}

/* Serve the device whose doorbell this exit rings, if its data path can. */
static int pyvmm_complete_doorbell(struct pyvmm_isr *isr, struct kvm_run *run)
{
	uint32_t queue;

	if (!isr->serve || !run->mmio.is_write || run->mmio.len != sizeof(queue) ||
	    run->mmio.phys_addr != isr->address - PYVMM_VIRTIO_NOTIFY_TO_STATUS)
		return 0;
	memcpy(&queue, run->mmio.data, sizeof(queue));
	return queue == isr->queue && isr->serve(isr->device);
}

static int pyvmm_complete_isr(struct pyvmm_fast_mmio *fast, int number, struct kvm_run *run)
{
	struct pyvmm_isr *isr = &fast->isr[number];
	uint32_t offset = run->mmio.is_write ? PYVMM_VIRTIO_STATUS_TO_ACK : 0;
	uint32_t bits;

	if (run->mmio.len != sizeof(bits) || run->mmio.phys_addr != isr->address + offset)
		return 0;
	if (run->mmio.is_write) {
		memcpy(&bits, run->mmio.data, sizeof(bits));
		pyvmm_isr_clear(fast, number, bits);
	} else {
		bits = __atomic_load_n(&isr->bits, __ATOMIC_SEQ_CST) | isr->always;
		memcpy(run->mmio.data, &bits, sizeof(bits));
	}
	return 1;
}

static uint8_t pyvmm_uart_byte(const struct pyvmm_uart *uart, int number)
{
	return uart->registers >> 8 * number;
}

static int pyvmm_thri_is_pending(const struct pyvmm_uart *uart)
{
	return uart->thr_emptied && pyvmm_uart_byte(uart, PYVMM_UART_IER) & PYVMM_UART_IER_THRI;
}

/* Publish a change of what is lent, and then set the interrupt line; with the lock. */
static void pyvmm_update_lent(struct pyvmm_uart *uart, uint8_t ier)
{
	uint32_t raised = uart->thr_emptied && ier & PYVMM_UART_IER_THRI;
	uint64_t iir = pyvmm_uart_byte(uart, PYVMM_UART_IIR) & PYVMM_UART_IIR_FIFO_ENABLED;
	uint64_t registers = uart->registers;

	registers &= ~(1ull << PYVMM_UART_IIR | 0xffull << 8 * PYVMM_UART_IER |
		       0xffull << 8 * PYVMM_UART_IIR);
	registers |= (uint64_t)ier << 8 * PYVMM_UART_IER;
	if (raised) /* a read of IIR has a side effect */
		registers |= (iir | PYVMM_UART_IIR_THRI) << 8 * PYVMM_UART_IIR;
	else
		registers |= (iir | PYVMM_UART_IIR_NO_INT) << 8 * PYVMM_UART_IIR |
			     1ull << PYVMM_UART_IIR;
	__atomic_store_n(&uart->registers, registers, __ATOMIC_RELEASE);
	if (raised != uart->raised)
		pyvmm_irq_line(uart->vm, uart->irq, raised);
	uart->raised = raised;
}

static void pyvmm_lend_uart(struct pyvmm_fast_mmio *fast, int number, int thr_emptied, int raised)
{
	struct pyvmm_uart *uart = &fast->uart[number];

	pthread_mutex_lock(&fast->lock);
	uart->thr_emptied = thr_emptied;
	uart->raised = raised;
	uart->lent = 1;
	pthread_mutex_unlock(&fast->lock);
}

/*
 * End the loan.  Returns IER, the condition of THRI in bit 8 and the line in bit 9; -1: not lent.
 * Until Python publishes, C completes no write of THR that must set the condition.
 */
static int pyvmm_retake_uart(struct pyvmm_fast_mmio *fast, int number)
{
	struct pyvmm_uart *uart = &fast->uart[number];
	int state = -1;
	uint8_t ier;

	pthread_mutex_lock(&fast->lock);
	if (uart->lent) {
		ier = pyvmm_uart_byte(uart, PYVMM_UART_IER);
		state = ier | uart->thr_emptied << 8 | uart->raised << 9;
		__atomic_store_n(&uart->complete_thr,
				 uart->thr_emptied || !(ier & PYVMM_UART_IER_THRI),
				 __ATOMIC_RELEASE);
	}
	uart->lent = 0;
	pthread_mutex_unlock(&fast->lock);
	return state;
}

/* Complete a read of IIR that shows THRI, and so ends it. */
static int pyvmm_complete_thri(struct pyvmm_fast_mmio *fast, struct pyvmm_uart *uart,
			       uint64_t offset, struct kvm_run *run)
{
	int done = 0;

	if (offset != PYVMM_UART_IIR || run->mmio.len != 1)
		return 0;
	pthread_mutex_lock(&fast->lock);
	if (uart->lent && pyvmm_thri_is_pending(uart)) {
		memset(run->mmio.data, 0, sizeof(run->mmio.data));
		run->mmio.data[0] = pyvmm_uart_byte(uart, PYVMM_UART_IIR);
		uart->thr_emptied = 0;
		pyvmm_update_lent(uart, pyvmm_uart_byte(uart, PYVMM_UART_IER));
		done = 1;
	}
	pthread_mutex_unlock(&fast->lock);
	return done;
}

/* Complete a write of IER.  To enable THRI while THR is empty, as it always is, interrupts. */
static int pyvmm_complete_ier(struct pyvmm_fast_mmio *fast, struct pyvmm_uart *uart, uint8_t value)
{
	int done;

	value &= PYVMM_UART_IER_BITS;
	pthread_mutex_lock(&fast->lock);
	done = uart->lent;
	if (done) {
		if (value & ~pyvmm_uart_byte(uart, PYVMM_UART_IER) & PYVMM_UART_IER_THRI)
			uart->thr_emptied = 1;
		__atomic_store_n(&uart->exits_left,
				 value & PYVMM_UART_IER_THRI ? -1 : uart->exits_first,
				 __ATOMIC_RELAXED);
		pyvmm_update_lent(uart, value);
	}
	pthread_mutex_unlock(&fast->lock);
	return done;
}

/* Count an exit.  Returns whether Python must handle it. */
static int pyvmm_was_last_exit(struct pyvmm_uart *uart)
{
	return __atomic_load_n(&uart->exits_left, __ATOMIC_RELAXED) > 0 &&
	       __atomic_sub_fetch(&uart->exits_left, 1, __ATOMIC_RELAXED) == 0;
}

static int pyvmm_complete_uart_read(struct pyvmm_uart *uart, uint64_t offset, struct kvm_run *run)
{
	uint64_t registers = __atomic_load_n(&uart->registers, __ATOMIC_ACQUIRE);
	uint64_t asked = ((1u << run->mmio.len) - 1) << offset & 0xff;

	if ((registers & asked) != asked || pyvmm_was_last_exit(uart))
		return 0;
	registers = (registers & ~0xffull) >> 8 * offset; /* nothing above the last register */
	memcpy(run->mmio.data, &registers, sizeof(registers));
	return 1;
}

/*
 * Returns whether a write leaves IER as it is.  Linux's console writes 0 before each line and the
 * old value after it, which is 0 until a program opens its tty.
 */
static int pyvmm_keeps_ier(struct pyvmm_uart *uart, uint64_t offset, uint8_t value)
{
	uint64_t registers = __atomic_load_n(&uart->registers, __ATOMIC_ACQUIRE);

	return offset == PYVMM_UART_IER && registers >> PYVMM_UART_IER & 1 &&
	       (value & PYVMM_UART_IER_BITS) == (registers >> 8 * PYVMM_UART_IER & 0xff);
}

static int pyvmm_completes_thr(struct pyvmm_uart *uart)
{
	return __atomic_load_n(&uart->lent, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&uart->complete_thr, __ATOMIC_ACQUIRE);
}

static int pyvmm_complete_uart_write(struct pyvmm_fast_mmio *fast, struct pyvmm_uart *uart,
				     uint64_t offset, struct kvm_run *run)
{
	int done;

	if (pyvmm_keeps_ier(uart, offset, run->mmio.data[0]))
		return 1;
	if (offset == PYVMM_UART_IER)
		return pyvmm_complete_ier(fast, uart, run->mmio.data[0]);
	if (offset != PYVMM_UART_THR || !pyvmm_completes_thr(uart) || pyvmm_was_last_exit(uart))
		return 0;
	pthread_mutex_lock(&fast->lock);
	done = pyvmm_completes_thr(uart);
	if (done) {
		pyvmm_drain_coalesced(fast);
		done = pyvmm_coalesced_is_empty(fast) && pyvmm_put_tx(uart, run->mmio.data[0]);
	}
	if (done && uart->lent && !uart->thr_emptied) {
		uart->thr_emptied = 1;
		pyvmm_update_lent(uart, pyvmm_uart_byte(uart, PYVMM_UART_IER));
	}
	pthread_mutex_unlock(&fast->lock);
	return done;
}

/* Only whole registers: a narrower write would set the rest of its register to 0. */
static int pyvmm_complete_rtc(struct pyvmm_rtc *rtc, struct kvm_run *run)
{
	uint64_t offset = run->mmio.phys_addr - rtc->base;
	struct timespec now;
	uint32_t value;

	if (!rtc->base || offset >= PYVMM_RTC_SIZE || offset % 4 || run->mmio.len != sizeof(value))
		return 0;
	clock_gettime(CLOCK_REALTIME, &now);
	if (now.tv_sec >= __atomic_load_n(&rtc->alarm_at, __ATOMIC_ACQUIRE))
		return 0;
	if (run->mmio.is_write) {
		memcpy(&value, run->mmio.data, sizeof(value));
		return offset == PYVMM_RTC_IMSC &&
		       value == __atomic_load_n(&rtc->registers[offset / 4], __ATOMIC_ACQUIRE);
	}
	value = offset == PYVMM_RTC_DR ?
			now.tv_sec + __atomic_load_n(&rtc->offset, __ATOMIC_ACQUIRE) :
			__atomic_load_n(&rtc->registers[offset / 4], __ATOMIC_ACQUIRE);
	memcpy(run->mmio.data, &value, sizeof(value));
	return 1;
}

/*
 * Complete an MMIO exit, if C can.  Returns whether it did.  counts has pairs, reads and writes:
 * one for each UART, one for interrupt status registers, one for unclaimed accesses, one for the
 * real-time clock, one for doorbells.  *unclaimed becomes the address of an unclaimed access.
 */
static int pyvmm_complete_mmio(struct pyvmm_fast_mmio *fast, struct kvm_run *run, uint64_t *counts,
			       uint64_t *unclaimed)
{
	uint64_t address = run->mmio.phys_addr;
	struct pyvmm_uart *uart;
	uint32_t n;

	for (n = 0; n < fast->isrs; n++) {
		if (pyvmm_complete_isr(fast, n, run)) {
			counts[2 * PYVMM_UARTS + run->mmio.is_write]++;
			return 1;
		}
		if (pyvmm_complete_doorbell(&fast->isr[n], run)) {
			counts[2 * (PYVMM_UARTS + 3) + run->mmio.is_write]++;
			return 1;
		}
	}
	if (pyvmm_complete_rtc(&fast->rtc, run)) {
		counts[2 * (PYVMM_UARTS + 2) + run->mmio.is_write]++;
		return 1;
	}
	for (n = 0; n < PYVMM_UARTS; n++) {
		uart = &fast->uart[n];
		if (uart->base && address - uart->base < PYVMM_UART_SIZE) {
			if (!(run->mmio.is_write ?
			      pyvmm_complete_uart_write(fast, uart, address - uart->base, run) :
			      pyvmm_complete_uart_read(uart, address - uart->base, run) ||
				      pyvmm_complete_thri(fast, uart, address - uart->base, run)))
				return 0;
			break;
		}
	}
	if (n == PYVMM_UARTS) {
		if (!fast->complete_unclaimed)
			return 0;
		for (uint32_t r = 0; r < fast->regions; r++)
			if (address - fast->region[r].base <
			    fast->region[r].end - fast->region[r].base)
				return 0;
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
		*unclaimed = address;
		n = PYVMM_UARTS + 1;
	}
	counts[2 * n + run->mmio.is_write]++;
	return 1;
}
