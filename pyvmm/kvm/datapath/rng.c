/*
 * Requests of a virtio entropy device, served without Python, by the vCPU that rings the doorbell.
 *
 * The queue is lent as a console's is; see console.c.
 *
 * Source: VIRTIO 1.2, section 5.4
 */

struct pyvmm_rng_own {
	pthread_mutex_t lock; /* over all of struct pyvmm_rng, too */
	uint32_t lent;
};

_Static_assert(sizeof(struct pyvmm_rng_own) <= sizeof(((struct pyvmm_rng *)0)->own),
	       "the lock needs more room");

static struct pyvmm_rng_own *pyvmm_rng_own(struct pyvmm_rng *rng)
{
	return (struct pyvmm_rng_own *)rng->own;
}

void pyvmm_rng_init(struct pyvmm_rng *rng)
{
	pthread_mutex_init(&pyvmm_rng_own(rng)->lock, NULL);
}

/* Fill a buffer.  Returns whether getrandom did. */
static int pyvmm_rng_fill(void *buffer, size_t size)
{
	size_t done = 0;
	ssize_t part;

	while (done < size) {
		part = getrandom((char *)buffer + done, size - done, 0);
		if (part > 0)
			done += part;
		else if (errno != EINTR)
			return 0;
	}
	return 1;
}

/* Serve a request.  Returns whether C can; *bytes is what it wrote. */
static int pyvmm_rng_serve_one(const struct pyvmm_rng *rng, const struct pyvmm_chain *chain,
			       uint64_t *bytes)
{
	uint64_t part;

	*bytes = 0;
	if (chain->readable || !chain->writable)
		return 0;
	for (int n = 0; n < chain->writable && *bytes < rng->most; n++) {
		part = chain->buffer[n].iov_len;
		if (part > rng->most - *bytes)
			part = rng->most - *bytes;
		if (!pyvmm_rng_fill(chain->buffer[n].iov_base, part))
			return 0;
		*bytes += part;
	}
	return 1;
}

/* Serve the requests of a kick.  Returns whether all are served; otherwise Python must do it. */
int pyvmm_rng_serve(void *device)
{
	struct pyvmm_rng *rng = device;
	struct pyvmm_rng_own *own = pyvmm_rng_own(rng);
	int found = PYVMM_TOO_LONG;
	struct pyvmm_chain chain;
	uint64_t bytes;

	pthread_mutex_lock(&own->lock);
	for (uint32_t n = 0; own->lent && n <= rng->queue.size; n++) {
		found = pyvmm_queue_next(&rng->queue, &chain);
		if (found > 0 && !pyvmm_rng_serve_one(rng, &chain, &bytes)) {
			pyvmm_queue_put_back(&rng->queue);
			found = PYVMM_TOO_LONG;
		}
		if (found <= 0)
			break;
		pyvmm_queue_push(&rng->queue, chain.head, bytes);
		rng->requests++;
		rng->bytes += bytes;
	}
	if (own->lent)
		pyvmm_queue_signal(&rng->queue, rng->isr, rng->irq);
	pthread_mutex_unlock(&own->lock);
	return !found;
}

/* Lend the queue, which Python has filled in.  Returns whether C can serve it. */
int pyvmm_rng_lend(struct pyvmm_rng *rng)
{
	struct pyvmm_rng_own *own = pyvmm_rng_own(rng);
	int placed;

	pthread_mutex_lock(&own->lock);
	placed = pyvmm_queue_place(&rng->queue);
	rng->requests = rng->bytes = 0;
	own->lent = placed;
	pthread_mutex_unlock(&own->lock);
	return placed;
}

/* Wait for the requests in progress, and end the loan. */
void pyvmm_rng_take_back(struct pyvmm_rng *rng)
{
	struct pyvmm_rng_own *own = pyvmm_rng_own(rng);

	pthread_mutex_lock(&own->lock);
	own->lent = 0;
	pthread_mutex_unlock(&own->lock);
}
