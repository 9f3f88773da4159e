/*
 * The data path of virtqueues (pyvmm/kvm/datapath/), with a driver that does anything.
 *
 * The input is a list of the driver's and the user's operations.  RAM and a window of pluggable
 * blocks are allocations of their own, so that AddressSanitizer sees each access outside them.  A
 * disk is a small file in memory.  The oracles: chains lie in memory that devices may address, the
 * console's output leaves once and in order, and an index never passes the driver's.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../../pyvmm/kvm/datapath/datapath.h"
#include "../../pyvmm/kvm/datapath/splitqueue.c"
#include "../../pyvmm/kvm/datapath/blk.c"
#include "../../pyvmm/kvm/datapath/console.c"
#include "../../pyvmm/kvm/datapath/rng.c"

#define RAM 0x80000000ull
#define RAM_SIZE 0x10000
#define PLUG 0x90000000ull
#define BLOCK 0x1000
#define BLOCKS 4
#define PAGE 4096
#define DISK_SIZE 0x8000
#define RINGS 0x800 /* bytes for each queue's rings, from the begin of RAM */
#define QUEUES 4

enum { BLK, RECEIVEQ, TRANSMITQ, RNG };

static const uint8_t *data;
static size_t left;

static uint8_t byte(void)
{
	if (!left)
		return 0;
	left--;
	return *data++;
}

static uint64_t word(void)
{
	uint64_t value = 0;

	for (int n = 0; n < 8; n++)
		value |= (uint64_t)byte() << 8 * n;
	return value;
}

static void require(int condition)
{
	if (!condition)
		abort();
}

/* What does not change from input to input */
static int disk = -1, irq, kick, output[2], input[2], null;

/* The machine of one input */
static uint8_t *ram, *plug, *logged;
static uint8_t plugged[BLOCKS], busy;
static uint32_t isr;
static uint64_t log_word;
static struct pyvmm_blk *blk;
static struct pyvmm_console *console;
static struct pyvmm_rng *rng;
static struct pyvmm_split_queue *queue[QUEUES];
static uint32_t next_desc[QUEUES];

static uint64_t host(const void *pointer)
{
	return (uintptr_t)pointer;
}

static void open_files(void)
{
	if (disk >= 0)
		return;
	disk = memfd_create("disk", 0);
	irq = eventfd(0, EFD_NONBLOCK);
	kick = eventfd(0, EFD_NONBLOCK);
	null = open("/dev/null", O_RDWR);
	require(disk >= 0 && irq >= 0 && kick >= 0 && null >= 0);
	require(!pipe2(output, O_NONBLOCK) && !pipe2(input, O_NONBLOCK));
	fcntl(output[1], F_SETPIPE_SZ, PAGE);
}

static void drain(int fd)
{
	static uint8_t bytes[PAGE];

	while (read(fd, bytes, sizeof(bytes)) > 0)
		;
}

static void set_up(int n, uint8_t how)
{
	struct pyvmm_split_queue *one = queue[n];
	uint64_t base = RAM + n * RINGS;

	one->region[0] = (struct pyvmm_memory_region){
		.base = RAM, .size = RAM_SIZE, .host = host(ram), .log = host(&log_word),
	};
	one->region[1] = (struct pyvmm_memory_region){
		.base = PLUG, .size = BLOCK * BLOCKS, .host = host(plug),
		.plugged = host(plugged), .block = BLOCK,
	};
	one->regions = 2;
	one->page_size = PAGE;
	one->size = 1 << (how & 4 ? how & 3 : 4);
	one->event_idx = how >> 3 & 1;
	one->indirect = how >> 4 & 1;
	one->desc = base;
	one->driver = base + 0x400;
	one->device = base + 0x500;
	if (how & 0x20) /* rings anywhere */
		one->desc = word(), one->driver = word() & ~1ull, one->device = word() & ~3ull;
	if (how & 0x40) /* indices about to wrap */
		one->last_avail = one->used_idx = one->signalled = 0xfffe;
}

/* Write an available ring's index, if the ring is where it was put. */
static void publish(int n, uint16_t more)
{
	uint16_t *avail = (uint16_t *)(ram + n * RINGS + 0x400);

	avail[1] += more;
}

/* Put a chain of valid descriptors into a ring; byte by byte the input may spoil them later. */
static void add_chain(int n)
{
	struct pyvmm_desc *table = (struct pyvmm_desc *)(ram + n * RINGS);
	uint16_t *avail = (uint16_t *)(ram + n * RINGS + 0x400);
	uint32_t count = 1 + (byte() & 3), size = queue[n]->size, first = next_desc[n] % size;
	uint8_t writes = byte();

	if (n == BLK)
		count = count < 3 ? 3 : count;
	for (uint32_t k = 0; k < count; k++) {
		struct pyvmm_desc *desc = &table[(first + k) % size];

		desc->addr = RAM + 0x2000 + (byte() << 8 & 0xdf00);
		desc->len = byte() << (writes >> 5 & 4);
		desc->flags = (writes >> k & 1) * PYVMM_DESC_WRITE + (k + 1 < count) * PYVMM_DESC_NEXT;
		desc->next = (first + k + 1) % size;
		if (n == BLK && !k) { /* a header */
			desc->addr = RAM + 0x4000 + 16 * (writes & 7);
			desc->len = 16;
			memset(ram + 0x4000 + 16 * (writes & 7), 0, 16);
			ram[0x4000 + 16 * (writes & 7)] = byte() % 5;
			ram[0x4000 + 16 * (writes & 7) + 8] = byte() & 0x3f;
			desc->flags = PYVMM_DESC_NEXT;
		} else if (n == BLK && k + 1 == count) { /* a status */
			desc->len = 1;
			desc->flags = PYVMM_DESC_WRITE;
		} else if (n == BLK) {
			desc->len = 512 * (1 + (desc->len & 3));
		} else if (n == RECEIVEQ || n == RNG) {
			desc->flags |= PYVMM_DESC_WRITE;
		} else {
			desc->flags &= ~PYVMM_DESC_WRITE;
		}
	}
	next_desc[n] += count;
	avail[2 + avail[1] % size] = first;
	publish(n, 1);
}

static int inside(const struct iovec *buffer)
{
	uint64_t at = host(buffer->iov_base), size = buffer->iov_len;

	return (at >= host(ram) && at + size <= host(ram) + RAM_SIZE) ||
	       (at >= host(plug) && at + size <= host(plug) + BLOCK * BLOCKS);
}

/* Serve a disk's requests as a leader alone does, but without waiting. */
static void serve_disk(void)
{
	struct pyvmm_blk_threads *own = pyvmm_blk_threads(blk);
	struct pyvmm_blk_request request;

	pthread_mutex_lock(&own->lock);
	for (int n = 0; n < 32 && own->lent; n++) {
		if (pyvmm_blk_take(blk, &request) <= 0)
			break;
		for (int k = 0; k < request.buffers; k++)
			require(inside(&request.data[k]));
		pyvmm_blk_serve_one(blk, &request, 1);
	}
	pthread_mutex_unlock(&own->lock);
}

/* Output by C, and look at what arrives: the bytes of the chains, whole, in their order. */
static void transmit(void)
{
	uint64_t before = console->sent;
	uint8_t bytes[2 * PAGE];
	ssize_t arrived;

	drain(output[0]);
	pyvmm_console_transmit(console);
	arrived = read(output[0], bytes, sizeof(bytes));
	if (console->output == output[1])
		require(console->sent - before == (uint64_t)(arrived > 0 ? arrived : 0));
	require(!busy || arrived <= 0);
}

static void lend_all(void)
{
	pyvmm_blk_lend(blk);
	pyvmm_console_lend(console);
	pyvmm_rng_lend(rng);
}

static void take_all_back(void)
{
	pyvmm_blk_take_back(blk);
	pyvmm_console_take_back(console);
	pyvmm_rng_take_back(rng);
}

static void set_up_all(uint8_t how)
{
	blk = calloc(1, sizeof(*blk));
	console = calloc(1, sizeof(*console));
	rng = calloc(1, sizeof(*rng));
	queue[BLK] = &blk->queue;
	queue[RECEIVEQ] = &console->receiveq;
	queue[TRANSMITQ] = &console->transmitq;
	queue[RNG] = &rng->queue;
	for (int n = 0; n < QUEUES; n++)
		set_up(n, n == (how & 3) ? byte() : how >> 2 & 0x18);
	pyvmm_blk_init(blk);
	pyvmm_console_init(console);
	pyvmm_rng_init(rng);
	blk->disk = disk;
	blk->kick = kick;
	blk->irq = console->irq = rng->irq = irq;
	blk->isr = console->isr = rng->isr = host(&isr);
	blk->size = DISK_SIZE;
	blk->block = how & 0x80 ? 4096 : 512;
	blk->threads = 1;
	console->output = how & 4 ? null : output[1];
	console->busy = host(&busy);
	console->takes_input = 1;
	rng->most = 64 << 10;
}

static void use_input(uint8_t how)
{
	uint8_t bytes[300];
	size_t size = 1 + byte();

	memset(bytes, how, sizeof(bytes));
	if (how & 1) {
		require(pyvmm_console_receive(console, bytes, size) <= size);
		return;
	}
	drain(input[0]);
	require(write(input[1], bytes, size) == (ssize_t)size);
	require(pyvmm_console_read(console, input[0]) <= size);
}

static void operate(uint8_t operation)
{
	int n = operation >> 4 & 3;
	uint8_t value;

	switch (operation & 15) {
	case 0:
	case 1:
	case 2:
		add_chain(n);
		break;
	case 3:
		serve_disk();
		break;
	case 4:
	case 5:
		transmit();
		break;
	case 6:
		use_input(operation >> 4);
		break;
	case 7:
		pyvmm_rng_serve(rng);
		break;
	case 8: /* a write of the driver, anywhere in the rings */
		value = byte();
		ram[n * RINGS + ((value << 3) + (byte() & 7)) % RINGS] = byte();
		break;
	case 9: /* a descriptor of any content */
		memcpy(ram + n * RINGS + 16 * (byte() & 15), (uint64_t[]){ word(), word() }, 16);
		break;
	case 10: /* an indirect table */
		memcpy(ram + n * RINGS + 16 * (byte() & 15),
		       (uint64_t[]){ RAM + (n ^ 1) * RINGS, 16 * (byte() & 15) | 4ull << 32 }, 16);
		break;
	case 11:
		publish(n, byte());
		break;
	case 12:
		plugged[n] ^= 1;
		break;
	case 13:
		busy = n & 1;
		console->skip = n & 2 ? byte() : console->skip;
		break;
	case 14:
		take_all_back();
		if (n & 1)
			lend_all();
		break;
	case 15:
		log_word = log_word ? 0 : host(logged);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	data = bytes;
	left = size;
	open_files();
	require(!ftruncate(disk, 0) && !ftruncate(disk, DISK_SIZE));
	ram = calloc(1, RAM_SIZE);
	plug = calloc(1, BLOCK * BLOCKS);
	logged = calloc(1, RAM_SIZE / PAGE);
	memset(next_desc, 0, sizeof(next_desc));
	plugged[0] = plugged[2] = 1;
	plugged[1] = plugged[3] = busy = 0;
	log_word = 0;
	set_up_all(byte());
	lend_all();
	while (left)
		operate(byte());
	take_all_back();
	pyvmm_blk_close(blk);
	for (int n = 0; n < QUEUES; n++)
		require(queue[n]->waiting <= queue[n]->size);
	free(logged);
	free(plug);
	free(ram);
	free(rng);
	free(console);
	free(blk);
	return 0;
}

#ifdef FUZZ_FILES /* without libFuzzer: run once for each file */
#include <stdio.h>

int main(int argc, char **argv)
{
	static uint8_t bytes[1 << 20];

	for (int n = 1; n < argc; n++) {
		FILE *file = fopen(argv[n], "rb");

		if (!file)
			return 2;
		LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, sizeof(bytes), file));
		fclose(file);
	}
	return 0;
}
#endif
