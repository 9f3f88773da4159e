/*
 * A virtio console's output and input, without Python.
 *
 * Both queues are lent: by pyvmm_console_lend until pyvmm_console_take_back, which Python calls
 * before it touches the queues or the device's state.  In between, a vCPU rings transmitq's
 * doorbell and outputs the chains in its exit. The loop's thread puts input into receiveq.
 *
 * The descriptor of the output never blocks.  If it has no room for all of a chain, the chain stays
 * in the ring with a note of how much is output, and Python continues: it has a buffer, and knows
 * how to wait.  Until the buffer is empty again, Python outputs every chain.
 *
 * Source: VIRTIO 1.2, section 5.3
 */

#define PYVMM_CONSOLE_TURN (64 << 10) /* bytes of input, before the loop looks at other files */

struct pyvmm_console_own {
	pthread_mutex_t lock; /* over all of struct pyvmm_console, too */
	uint32_t lent;
};

_Static_assert(sizeof(struct pyvmm_console_own) <= sizeof(((struct pyvmm_console *)0)->own),
	       "the lock needs more room");

static struct pyvmm_console_own *pyvmm_console_own(struct pyvmm_console *console)
{
	return (struct pyvmm_console_own *)console->own;
}

void pyvmm_console_init(struct pyvmm_console *console)
{
	pthread_mutex_init(&pyvmm_console_own(console)->lock, NULL);
}

/* Remove bytes from the beginning of some buffers.  Returns how many buffers are used up. */
static int pyvmm_skip(struct iovec *buffer, int buffers, uint64_t bytes)
{
	int n;

	for (n = 0; n < buffers && bytes >= buffer[n].iov_len; n++)
		bytes -= buffer[n].iov_len;
	if (n < buffers) {
		buffer[n].iov_base = (char *)buffer[n].iov_base + bytes;
		buffer[n].iov_len -= bytes;
	}
	return n;
}

/* Output a chain, or as much as there is room for.  Returns whether all of it is output. */
static int pyvmm_console_output(struct pyvmm_console *console, struct pyvmm_chain *chain)
{
	int first;
	ssize_t done;

	if (chain->writable || __atomic_load_n((const uint8_t *)(uintptr_t)console->busy, __ATOMIC_ACQUIRE))
		return 0;
	first = pyvmm_skip(chain->buffer, chain->readable, console->skip);
	if (first < chain->readable) {
		done = writev(console->output, &chain->buffer[first], chain->readable - first);
		if (done < 0)
			return 0; /* no room, or an error that Python will see, too */
		console->skip += done;
		console->sent += done;
		if (console->skip < chain->readable_size)
			return 0;
	}
	console->skip = 0;
	console->chains++;
	return 1;
}

/* Output the chains of a kick.  Returns whether all are output; otherwise Python must do it. */
int pyvmm_console_transmit(void *device)
{
	struct pyvmm_console *console = device;
	struct pyvmm_console_own *own = pyvmm_console_own(console);
	struct pyvmm_split_queue *queue = &console->transmitq;
	struct pyvmm_chain chain;
	int found = PYVMM_TOO_LONG;

	pthread_mutex_lock(&own->lock);
	for (uint32_t n = 0; own->lent && n <= queue->size; n++) {
		found = pyvmm_queue_next(queue, &chain);
		if (found > 0 && !pyvmm_console_output(console, &chain)) {
			pyvmm_queue_put_back(queue);
			found = PYVMM_TOO_LONG;
		}
		if (found <= 0)
			break;
		pyvmm_queue_push(queue, chain.head, 0);
	}
	if (own->lent)
		pyvmm_queue_signal(queue, console->isr, console->irq);
	pthread_mutex_unlock(&own->lock);
	return !found;
}

/* Take receiveq's next chain.  Returns whether there is one that C may fill; with the lock. */
static int pyvmm_console_room(struct pyvmm_console *console, struct pyvmm_chain *chain)
{
	struct pyvmm_split_queue *queue = &console->receiveq;

	if (!pyvmm_console_own(console)->lent || !console->takes_input ||
	    pyvmm_queue_next(queue, chain) <= 0)
		return 0;
	if (!chain->readable && chain->writable)
		return 1;
	pyvmm_queue_put_back(queue); /* Python reports it */
	return 0;
}

/* Interrupt the driver for input; with the lock. */
static void pyvmm_console_end_input(struct pyvmm_console *console, int all)
{
	if (all)
		pyvmm_queue_disable_kicks(&console->receiveq);
	pyvmm_queue_signal(&console->receiveq, console->isr, console->irq);
}

/* Put input into the guest's buffers.  Returns how many bytes there was room for. */
uint64_t pyvmm_console_receive(struct pyvmm_console *console, const uint8_t *data, uint64_t size)
{
	struct pyvmm_console_own *own = pyvmm_console_own(console);
	uint64_t taken = 0, before, part;
	struct pyvmm_chain chain;

	pthread_mutex_lock(&own->lock);
	while (taken < size && pyvmm_console_room(console, &chain)) {
		before = taken;
		for (int n = 0; n < chain.writable && taken < size; n++) {
			part = chain.buffer[n].iov_len;
			if (part > size - taken)
				part = size - taken;
			memcpy(chain.buffer[n].iov_base, data + taken, part);
			taken += part;
		}
		pyvmm_queue_push(&console->receiveq, chain.head, taken - before);
	}
	if (taken)
		pyvmm_console_end_input(console, taken == size);
	pthread_mutex_unlock(&own->lock);
	return taken;
}

/*
 * Read input from a descriptor into the guest's buffers.  Returns how many bytes, or 0: then Python
 * looks for the reason, which may be the end of the input.
 *
 * It polls first: the descriptor may block, and a vCPU waits for the lock.
 */
uint64_t pyvmm_console_read(struct pyvmm_console *console, int fd)
{
	struct pyvmm_console_own *own = pyvmm_console_own(console);
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	struct pyvmm_chain chain;
	uint64_t taken = 0;
	ssize_t done;
	int room = 1;

	pthread_mutex_lock(&own->lock);
	while (taken < PYVMM_CONSOLE_TURN && poll(&poll_fd, 1, 0) > 0 &&
	       poll_fd.revents & POLLIN) {
		room = pyvmm_console_room(console, &chain);
		if (!room)
			break;
		done = readv(fd, chain.buffer, chain.writable);
		if (done <= 0) {
			pyvmm_queue_put_back(&console->receiveq);
			break;
		}
		pyvmm_queue_push(&console->receiveq, chain.head, done);
		taken += done;
	}
	if (taken)
		pyvmm_console_end_input(console, room);
	pthread_mutex_unlock(&own->lock);
	return taken;
}

/* Lend the queues, which Python has filled in.  Returns whether C can serve them. */
int pyvmm_console_lend(struct pyvmm_console *console)
{
	struct pyvmm_console_own *own = pyvmm_console_own(console);
	int placed;

	pthread_mutex_lock(&own->lock);
	placed = pyvmm_queue_place(&console->receiveq) && pyvmm_queue_place(&console->transmitq);
	console->chains = console->sent = 0;
	own->lent = placed;
	pthread_mutex_unlock(&own->lock);
	return placed;
}

/* Wait for the chains and the input in progress, and end the loan. */
void pyvmm_console_take_back(struct pyvmm_console *console)
{
	struct pyvmm_console_own *own = pyvmm_console_own(console);

	pthread_mutex_lock(&own->lock);
	own->lent = 0;
	pthread_mutex_unlock(&own->lock);
}
