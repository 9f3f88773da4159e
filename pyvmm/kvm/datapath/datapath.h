/*
 * The data path of virtqueues: what Python and C share.  cffi reads this file, too, so it has only
 * numbers, structures and functions.
 */

#define PYVMM_MEMORY_REGIONS 72
#define PYVMM_CHAIN_BUFFERS 256 /* a chain with more goes to Python */
#define PYVMM_BLK_THREADS 4

#define PYVMM_BROKEN -1 /* the ring or the chain breaks the rules */
#define PYVMM_TOO_LONG -2 /* more buffers than this code takes */

/* A piece of the memory that devices may address */
struct pyvmm_memory_region {
	uint64_t base; /* guest physical */
	uint64_t size;
	uint64_t host; /* its address in this process */
	uint64_t plugged; /* the address of a byte for each block, or 0: all of it is memory */
	uint64_t block; /* bytes of a block */
	uint64_t log; /* the address of a word, or 0; the word: see struct pyvmm_split_queue */
};

struct pyvmm_split_queue {
	/*
	 * A region's log word is 0, or the address of a byte for each page of the host: 1 if this
	 * process may have written it.  A snapshot sets the word while no request is in flight.
	 */
	struct pyvmm_memory_region region[PYVMM_MEMORY_REGIONS];
	uint32_t regions;
	uint32_t page_size;

	/* As the driver and the transport set the queue up */
	uint32_t size;
	uint32_t event_idx;
	uint32_t indirect;
	uint64_t desc; /* guest addresses */
	uint64_t driver;
	uint64_t device;

	/* As in Virtqueue */
	uint16_t last_avail;
	uint16_t used_idx;
	uint16_t signalled;
	uint16_t waiting;

	/* Addresses in this process, from the guest addresses; see pyvmm_queue_place */
	uint64_t desc_at;
	uint64_t avail_at;
	uint64_t used_at;
};

/* A chain: readable buffers, then writable ones; none is empty. */
struct pyvmm_chain {
	uint16_t head;
	uint16_t readable;
	uint16_t writable;
	uint64_t readable_size;
	uint64_t writable_size;
	struct iovec buffer[PYVMM_CHAIN_BUFFERS];
};

/* A disk, and the loan of its queue; see blk.c */
struct pyvmm_blk {
	struct pyvmm_split_queue queue;

	int disk;
	int kick; /* an eventfd: the doorbell */
	int irq; /* an eventfd: the interrupt */
	uint32_t read_only;
	uint32_t no_writes; /* Python writes: the disk is read-only, or each write must be durable */
	uint32_t block; /* the smallest unit of a request, bytes */
	uint32_t threads; /* that serve it, Python's included; at most PYVMM_BLK_THREADS */
	uint64_t size; /* of the disk, bytes */
	uint64_t isr; /* the address of the interrupt status register */

	/* Since the last take-back */
	uint64_t reads;
	uint64_t bytes_read;
	uint64_t writes;
	uint64_t bytes_written;
	uint64_t flushes;
	uint32_t handed; /* a request for Python is the next of the queue */
	uint32_t failures;
	uint16_t failed[PYVMM_BLK_THREADS]; /* heads of requests that Python serves again */

	uint64_t own[80]; /* struct pyvmm_blk_threads */
};

/* A virtio console, and the loan of its queues; see console.c */
struct pyvmm_console {
	struct pyvmm_split_queue receiveq;
	struct pyvmm_split_queue transmitq;

	int output; /* a descriptor that never blocks */
	int irq; /* an eventfd: the interrupt */
	uint64_t isr; /* the address of the interrupt status register */
	uint64_t busy; /* the address of a byte: 0 if all earlier output is in the descriptor */
	uint32_t takes_input; /* the driver is ready for it */
	uint64_t skip; /* bytes of transmitq's next chain that are output */

	/* Since the queues were lent */
	uint64_t chains; /* output */
	uint64_t sent; /* bytes output */

	uint64_t own[8]; /* struct pyvmm_console_own */
};

/* A virtio entropy device, and the loan of its queue; see rng.c */
struct pyvmm_rng {
	struct pyvmm_split_queue queue;

	int irq;
	uint64_t isr;
	uint64_t most; /* bytes of a request, at most */

	/* Since the queue was lent */
	uint64_t requests;
	uint64_t bytes;

	uint64_t own[8]; /* struct pyvmm_rng_own */
};

int pyvmm_queue_place(struct pyvmm_split_queue *queue);
int pyvmm_queue_enable_kicks(struct pyvmm_split_queue *queue);
void pyvmm_queue_disable_kicks(struct pyvmm_split_queue *queue);
int pyvmm_queue_pop(struct pyvmm_split_queue *queue, struct pyvmm_chain *chain);
void pyvmm_queue_push(struct pyvmm_split_queue *queue, uint16_t head, uint32_t written);
int pyvmm_queue_needs_interrupt(struct pyvmm_split_queue *queue);

void pyvmm_blk_init(struct pyvmm_blk *blk);
int pyvmm_blk_lend(struct pyvmm_blk *blk);
void pyvmm_blk_serve(struct pyvmm_blk *blk);
void pyvmm_blk_take_back(struct pyvmm_blk *blk);
void pyvmm_blk_close(struct pyvmm_blk *blk);

void pyvmm_console_init(struct pyvmm_console *console);
int pyvmm_console_lend(struct pyvmm_console *console);
int pyvmm_console_transmit(void *console);
uint64_t pyvmm_console_receive(struct pyvmm_console *console, const uint8_t *data, uint64_t size);
uint64_t pyvmm_console_read(struct pyvmm_console *console, int fd);
void pyvmm_console_take_back(struct pyvmm_console *console);

void pyvmm_rng_init(struct pyvmm_rng *rng);
int pyvmm_rng_lend(struct pyvmm_rng *rng);
int pyvmm_rng_serve(void *rng);
void pyvmm_rng_take_back(struct pyvmm_rng *rng);
