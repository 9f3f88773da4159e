/*
 * Requests of a virtio block device, served without Python: reads, writes and flushes.
 *
 * The queue is lent: by pyvmm_blk_lend until pyvmm_blk_take_back, which Python calls before it
 * touches the queue or the device's state.  In between, one thread leads: it waits for doorbells
 * and takes requests.  Mostly it also serves them, and interrupts the driver once for all requests
 * found together.  If requests wait for I/O, it first makes another thread the leader.
 *
 * C ends the loan itself at a request that it does not know, which stays in the ring; and at one
 * that fails, which Python serves again from its head.
 *
 * Source: VIRTIO 1.2, section 5.2; linux/virtio_blk.h
 */

#define PYVMM_BLK_HELPERS (PYVMM_BLK_THREADS - 1)
#define PYVMM_BLK_STACK (256 << 10)
#define PYVMM_BLK_LARGE (256 << 10) /* bytes: a larger request does not delay others that wait */
#define PYVMM_BLK_SLOW_NS 50000 /* off the CPU: a request that took longer has waited for I/O */
#define PYVMM_BLK_COPIED (64 << 10) /* bytes: so many more may take as long again */
#define PYVMM_BLK_WINDOW 8 /* requests: two waits this close together mean I/O, not preemption */
#define PYVMM_BLK_OVERLAP 64 /* requests that overlap after the last such pair */

#define PYVMM_BLK_IN 0
#define PYVMM_BLK_OUT 1
#define PYVMM_BLK_FLUSH 4
#define PYVMM_SECTOR 512

/* The threads, and what they know of a disk's speed */
struct pyvmm_blk_threads {
	pthread_mutex_t lock; /* over all of struct pyvmm_blk, too */
	pthread_cond_t no_leader; /* wakes a follower; also: the loan has ended */
	pthread_cond_t quiet; /* nothing is in flight, and no thread leads */
	uint32_t lent;
	uint32_t has_leader;
	uint32_t sleeps; /* the leader waits for the doorbell */
	uint32_t in_flight;
	uint32_t followers;
	uint32_t closing;
	uint32_t helpers;
	pthread_t helper[PYVMM_BLK_HELPERS];

	/* Whether requests wait for I/O: these count down to 0, request by request */
	uint32_t measured; /* requests whose time off the CPU is measured */
	uint32_t since_wait;
	uint32_t overlap;
	uint32_t flush_is_slow;
};

struct pyvmm_blk_header {
	uint32_t type;
	uint32_t ioprio;
	uint64_t sector;
};

struct pyvmm_blk_request {
	struct pyvmm_chain chain;
	struct pyvmm_blk_header header;
	uint8_t *status;
	struct iovec *data;
	int buffers;
	uint64_t bytes;
};

_Static_assert(sizeof(struct pyvmm_blk_threads) <= sizeof(((struct pyvmm_blk *)0)->own),
	       "the threads need more room");

static struct pyvmm_blk_threads *pyvmm_blk_threads(struct pyvmm_blk *blk)
{
	return (struct pyvmm_blk_threads *)blk->own;
}

void pyvmm_blk_init(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	pthread_mutex_init(&own->lock, NULL);
	pthread_cond_init(&own->no_leader, NULL);
	pthread_cond_init(&own->quiet, NULL);
}

/* Remove the header from the readable buffers.  Returns the number of these that are used up. */
static int pyvmm_blk_take_header(struct pyvmm_chain *chain, struct pyvmm_blk_header *header)
{
	size_t done = 0, part;
	int n = 0;

	while (done < sizeof(*header)) {
		struct iovec *buffer = &chain->buffer[n];

		part = sizeof(*header) - done;
		if (part > buffer->iov_len)
			part = buffer->iov_len;
		memcpy((char *)header + done, buffer->iov_base, part);
		done += part;
		buffer->iov_base = (char *)buffer->iov_base + part;
		buffer->iov_len -= part;
		n += !buffer->iov_len;
	}
	__asm__ volatile("" : "+m"(*header) : : "memory"); /* do not load it again */
	return n;
}

static int pyvmm_blk_is_inside(const struct pyvmm_blk *blk, uint64_t sector, uint64_t bytes)
{
	uint64_t offset = sector * PYVMM_SECTOR;

	return sector <= blk->size / PYVMM_SECTOR && bytes && !(bytes % blk->block) &&
	       !(offset % blk->block) && bytes <= blk->size - offset;
}

/* Take a request apart.  Returns whether C knows it, and it is valid. */
static int pyvmm_blk_parse(const struct pyvmm_blk *blk, struct pyvmm_blk_request *request)
{
	struct pyvmm_chain *chain = &request->chain;
	struct iovec *last;
	uint64_t given, room;
	int first;

	if (chain->readable_size < sizeof(request->header) || !chain->writable)
		return 0;
	given = chain->readable_size - sizeof(request->header);
	room = chain->writable_size - 1;
	first = pyvmm_blk_take_header(chain, &request->header);
	last = &chain->buffer[chain->readable + chain->writable - 1];
	request->status = (uint8_t *)last->iov_base + last->iov_len - 1;
	last->iov_len--;
	request->bytes = given + room;
	switch (request->header.type) {
	case PYVMM_BLK_IN:
		request->data = &chain->buffer[chain->readable];
		request->buffers = chain->writable - !last->iov_len;
		return !given && pyvmm_blk_is_inside(blk, request->header.sector, room);
	case PYVMM_BLK_OUT:
		request->data = &chain->buffer[first];
		request->buffers = chain->readable - first;
		return !room && !blk->no_writes &&
		       pyvmm_blk_is_inside(blk, request->header.sector, given);
	case PYVMM_BLK_FLUSH:
		return !request->bytes;
	}
	return 0;
}

/* Take the next request.  Returns 1, 0 if there is none, < 0 if Python must serve it. */
static int pyvmm_blk_take(struct pyvmm_blk *blk, struct pyvmm_blk_request *request)
{
	int found = pyvmm_queue_next(&blk->queue, &request->chain);

	if (found > 0 && !pyvmm_blk_parse(blk, request)) {
		pyvmm_queue_put_back(&blk->queue);
		return PYVMM_TOO_LONG;
	}
	return found;
}

/* Read or write all of a request's data.  Returns whether that succeeded. */
static int pyvmm_blk_transfer(const struct pyvmm_blk *blk, const struct pyvmm_blk_request *request,
			      int writes)
{
	off_t offset = request->header.sector * PYVMM_SECTOR;
	struct iovec *data = request->data;
	int buffers = request->buffers;
	uint64_t left = request->bytes;
	ssize_t done;

	while (left) { /* a network's file system may do a part */
		done = writes ? pwritev(blk->disk, data, buffers, offset) :
				preadv(blk->disk, data, buffers, offset);
		if (done <= 0)
			return 0;
		left -= done;
		offset += done;
		for (; buffers && (size_t)done >= data->iov_len; buffers--, data++)
			done -= data->iov_len;
		if (buffers) {
			data->iov_base = (char *)data->iov_base + done;
			data->iov_len -= done;
		}
	}
	return 1;
}

/* Do a request's I/O.  Returns whether it succeeded. */
static int pyvmm_blk_io(const struct pyvmm_blk *blk, const struct pyvmm_blk_request *request)
{
	if (request->header.type == PYVMM_BLK_FLUSH)
		return blk->read_only || !fdatasync(blk->disk);
	return pyvmm_blk_transfer(blk, request, request->header.type == PYVMM_BLK_OUT);
}

static uint64_t pyvmm_clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Interrupt the driver, if it wants that; with the lock. */
static void pyvmm_blk_signal(struct pyvmm_blk *blk)
{
	pyvmm_queue_signal(&blk->queue, blk->isr, blk->irq);
}

/* Wake a leader that waits for the doorbell, because the loan ends; with the lock. */
static void pyvmm_blk_wake_leader(struct pyvmm_blk *blk)
{
	uint64_t one = 1;

	if (pyvmm_blk_threads(blk)->sleeps)
		while (write(blk->kick, &one, sizeof(one)) < 0 && errno == EINTR)
			;
}

/* Note how long a request took; with the lock.  Returns whether it waited for I/O. */
static int pyvmm_blk_note_time(struct pyvmm_blk *blk, const struct pyvmm_blk_request *request,
			       uint64_t took, uint64_t busy)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	int slow = took > PYVMM_BLK_SLOW_NS * (1 + request->bytes / PYVMM_BLK_COPIED);
	int waited = own->measured && took > busy && took - busy > PYVMM_BLK_SLOW_NS;

	if (request->header.type == PYVMM_BLK_FLUSH)
		own->flush_is_slow = slow;
	if (slow)
		own->measured = PYVMM_BLK_OVERLAP;
	else if (own->measured)
		own->measured--;
	if (waited && own->since_wait)
		own->overlap = PYVMM_BLK_OVERLAP;
	if (waited)
		own->since_wait = PYVMM_BLK_WINDOW;
	else if (own->since_wait)
		own->since_wait--;
	return waited;
}

static void pyvmm_blk_count(struct pyvmm_blk *blk, const struct pyvmm_blk_request *request)
{
	switch (request->header.type) {
	case PYVMM_BLK_IN:
		blk->reads++;
		blk->bytes_read += request->bytes;
		break;
	case PYVMM_BLK_OUT:
		blk->writes++;
		blk->bytes_written += request->bytes;
		break;
	default:
		blk->flushes++;
	}
}

/* Serve a request; with the lock, which is free meanwhile. */
static void pyvmm_blk_serve_one(struct pyvmm_blk *blk, struct pyvmm_blk_request *request, int leads)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	uint32_t measured = own->measured;
	uint64_t busy = 0, took;
	int done, waited;

	own->in_flight++;
	pthread_mutex_unlock(&own->lock);
	took = pyvmm_clock_ns(CLOCK_MONOTONIC);
	if (measured)
		busy = pyvmm_clock_ns(CLOCK_THREAD_CPUTIME_ID);
	done = pyvmm_blk_io(blk, request);
	if (measured)
		busy = pyvmm_clock_ns(CLOCK_THREAD_CPUTIME_ID) - busy;
	took = pyvmm_clock_ns(CLOCK_MONOTONIC) - took;
	pthread_mutex_lock(&own->lock);
	own->in_flight--;
	waited = pyvmm_blk_note_time(blk, request, took, measured ? busy : took);
	if (done) {
		*request->status = 0;
		pyvmm_queue_push(&blk->queue, request->chain.head, request->chain.writable_size);
		pyvmm_blk_count(blk, request);
	} else {
		blk->failed[blk->failures++] = request->chain.head;
		own->lent = 0;
		pyvmm_blk_wake_leader(blk);
	}
	if (waited || !leads || !blk->queue.waiting || !own->lent)
		pyvmm_blk_signal(blk);
}

static void *pyvmm_blk_help(void *blk);

/* Start one more thread; with the lock.  Returns whether there is one. */
static int pyvmm_blk_start_helper(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (pthread_attr_init(&attributes))
		return 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for Python's threads */
	error = pthread_attr_setstacksize(&attributes, PYVMM_BLK_STACK);
	if (!error)
		error = pthread_create(&own->helper[own->helpers], &attributes, pyvmm_blk_help, blk);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		return 0;
	own->helpers++;
	return 1;
}

/*
 * Make another thread the leader, if this request may take long; with the lock.  Returns whether
 * this thread still leads.  Without a free thread, the first that ends its request leads.
 */
static int pyvmm_blk_leads_on(struct pyvmm_blk *blk, const struct pyvmm_blk_request *request)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	if (!own->overlap && !(request->header.type == PYVMM_BLK_FLUSH && own->flush_is_slow) &&
	    (request->bytes <= PYVMM_BLK_LARGE || !(blk->queue.waiting || own->since_wait)))
		return 1;
	if (own->overlap)
		own->overlap--;
	if (!own->followers && own->helpers + 1 < blk->threads && !pyvmm_blk_start_helper(blk))
		return 1;
	pyvmm_blk_signal(blk); /* for requests completed before */
	own->has_leader = 0;
	pthread_cond_signal(&own->no_leader);
	return 0;
}

static void pyvmm_blk_wait_for_kick(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	uint64_t count;

	own->sleeps = 1;
	pthread_mutex_unlock(&own->lock);
	while (read(blk->kick, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	pthread_mutex_lock(&own->lock);
	own->sleeps = 0;
}

/* Lead until this thread has made another one the leader, or the loan has ended; with the lock. */
static void pyvmm_blk_lead(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	struct pyvmm_blk_request request;
	int found, leads = 1;

	own->has_leader = 1;
	while (leads && own->lent) {
		found = pyvmm_blk_take(blk, &request);
		if (!found) {
			pyvmm_blk_wait_for_kick(blk);
		} else if (found < 0) {
			blk->handed = 1;
			own->lent = 0;
		} else {
			leads = pyvmm_blk_leads_on(blk, &request);
			pyvmm_blk_serve_one(blk, &request, leads);
		}
	}
	if (leads)
		own->has_leader = 0;
	if (!own->lent) {
		pyvmm_blk_signal(blk);
		pthread_cond_broadcast(&own->no_leader);
		if (!own->in_flight && !own->has_leader)
			pthread_cond_broadcast(&own->quiet);
	}
}

static void pyvmm_blk_follow(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	own->followers++;
	pthread_cond_wait(&own->no_leader, &own->lock);
	own->followers--;
}

static void *pyvmm_blk_help(void *argument)
{
	struct pyvmm_blk *blk = argument;
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	pthread_mutex_lock(&own->lock);
	while (!own->closing) {
		if (own->lent && !own->has_leader)
			pyvmm_blk_lead(blk);
		else
			pyvmm_blk_follow(blk);
	}
	pthread_mutex_unlock(&own->lock);
	return NULL;
}

/*
 * Serve requests until the loan ends; Python's thread calls this.  A loan that has ended before is
 * no error.
 */
void pyvmm_blk_serve(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	pthread_mutex_lock(&own->lock);
	while (own->lent) {
		if (!own->has_leader)
			pyvmm_blk_lead(blk);
		else
			pyvmm_blk_follow(blk);
	}
	pthread_mutex_unlock(&own->lock);
}

/* Lend the queue, which Python has filled in.  Returns whether C can serve it. */
int pyvmm_blk_lend(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	int placed;

	pthread_mutex_lock(&own->lock);
	placed = pyvmm_queue_place(&blk->queue);
	blk->queue.waiting = 0;
	blk->reads = blk->bytes_read = blk->writes = blk->bytes_written = blk->flushes = 0;
	blk->handed = blk->failures = 0;
	own->lent = placed;
	pthread_mutex_unlock(&own->lock);
	return placed;
}

/* End the loan, and wait for the requests in flight. */
void pyvmm_blk_take_back(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	pthread_mutex_lock(&own->lock);
	own->lent = 0;
	pyvmm_blk_wake_leader(blk);
	while (own->in_flight || own->has_leader)
		pthread_cond_wait(&own->quiet, &own->lock);
	pthread_cond_broadcast(&own->no_leader); /* Python's thread may follow */
	pthread_mutex_unlock(&own->lock);
}

/* End the threads, after the queue was taken back. */
void pyvmm_blk_close(struct pyvmm_blk *blk)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);

	pthread_mutex_lock(&own->lock);
	own->closing = 1;
	pthread_cond_broadcast(&own->no_leader);
	pthread_mutex_unlock(&own->lock);
	for (uint32_t n = 0; n < own->helpers; n++)
		pthread_join(own->helper[n], NULL);
	own->helpers = 0;
}
