/* MMIO exits that C completes, without KVM and Python: for this machine, see plainmmio.py. */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <linux/kvm.h>

#include "fastmmio.c"

static int level[256]; /* the interrupt lines, by number */

static int pyvmm_irq_line(int vm, uint32_t irq, int raised)
{
	(void)vm;
	__atomic_store_n(&level[irq & 0xff], raised, __ATOMIC_SEQ_CST);
	return 0;
}

int plain_level(uint32_t irq)
{
	return __atomic_load_n(&level[irq & 0xff], __ATOMIC_SEQ_CST);
}

void plain_set_level(uint32_t irq, int raised)
{
	pyvmm_irq_line(-1, irq, raised);
}

struct pyvmm_fast_mmio *plain_make(uint64_t base)
{
	struct pyvmm_fast_mmio *fast = calloc(1, sizeof(*fast));

	pyvmm_fast_mmio_init(fast);
	fast->ring = calloc(1, 4096);
	fast->entries = (4096 - sizeof(*fast->ring)) / sizeof(fast->ring->coalesced_mmio[0]);
	fast->uart[0].base = base;
	fast->uart[0].exits_left = -1;
	return fast;
}

void plain_free(struct pyvmm_fast_mmio *fast)
{
	pthread_mutex_destroy(&fast->lock);
	free(fast->ring);
	free(fast);
}

/* What Python sets by the members of struct pyvmm_uart. */
void plain_set_line(struct pyvmm_fast_mmio *fast, uint32_t irq, int32_t exits_first)
{
	fast->uart[0].irq = irq;
	fast->uart[0].exits_first = exits_first;
}

void plain_set_registers(struct pyvmm_fast_mmio *fast, uint64_t registers)
{
	__atomic_store_n(&fast->uart[0].registers, registers, __ATOMIC_RELEASE);
}

void plain_set_complete_thr(struct pyvmm_fast_mmio *fast, uint32_t complete)
{
	__atomic_store_n(&fast->uart[0].complete_thr, complete, __ATOMIC_RELEASE);
}

void plain_set_exits_left(struct pyvmm_fast_mmio *fast, int32_t exits)
{
	__atomic_store_n(&fast->uart[0].exits_left, exits, __ATOMIC_RELAXED);
}

int32_t plain_exits_left(struct pyvmm_fast_mmio *fast)
{
	return __atomic_load_n(&fast->uart[0].exits_left, __ATOMIC_RELAXED);
}

void plain_lend(struct pyvmm_fast_mmio *fast, int thr_emptied, int raised)
{
	pyvmm_lend_uart(fast, 0, thr_emptied, raised);
}

int plain_retake(struct pyvmm_fast_mmio *fast)
{
	return pyvmm_retake_uart(fast, 0);
}

int plain_has_tx(struct pyvmm_fast_mmio *fast)
{
	return pyvmm_has_tx(fast, 0);
}

size_t plain_take_tx(struct pyvmm_fast_mmio *fast, uint8_t *bytes, size_t size)
{
	return pyvmm_take_tx(fast, 0, bytes, size);
}

int plain_wait_tx(struct pyvmm_fast_mmio *fast, int stop, int min_ms, int max_ms)
{
	return pyvmm_wait_tx(fast, 0, stop, min_ms, max_ms);
}

void plain_isrs(struct pyvmm_fast_mmio *fast, uint32_t bits)
{
	pyvmm_isr_set(fast, 0, bits);
	pyvmm_isr_clear(fast, 0, bits);
	pyvmm_set_doorbell(fast, 0, 0, NULL, NULL);
}

/* A guest's access.  Returns whether C completes it; *value is what it writes or reads. */
int plain_access(struct pyvmm_fast_mmio *fast, uint64_t address, uint32_t length, int is_write,
		 uint64_t *value)
{
	uint64_t counts[2 * (PYVMM_UARTS + 4)] = { 0 }, unclaimed = 0;
	struct kvm_run run = { .exit_reason = KVM_EXIT_MMIO };
	int done;

	run.mmio.phys_addr = address;
	run.mmio.len = length;
	run.mmio.is_write = is_write;
	if (is_write)
		memcpy(run.mmio.data, value, sizeof(*value));
	done = pyvmm_complete_mmio(fast, &run, counts, &unclaimed);
	if (done && !is_write)
		memcpy(value, run.mmio.data, sizeof(*value));
	return done;
}

/* A write of THR that KVM coalesces.  Returns 0 if the ring is full. */
int plain_coalesce(struct pyvmm_fast_mmio *fast, uint64_t address, uint8_t value)
{
	struct kvm_coalesced_mmio_ring *ring = fast->ring;
	uint32_t next = (ring->last + 1) % fast->entries;

	if (next == __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE))
		return 0;
	ring->coalesced_mmio[ring->last].phys_addr = address;
	ring->coalesced_mmio[ring->last].len = 1;
	ring->coalesced_mmio[ring->last].data[0] = value;
	__atomic_store_n(&ring->last, next, __ATOMIC_RELEASE);
	return 1;
}
