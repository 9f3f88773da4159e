/*
 * The first program of a Linux guest with a disk.  It loads the disk's driver, and reads and writes
 * with O_DIRECT.  For each kind of request it prints the name, ticks of the virtual counter, and the
 * number of requests; then it switches off.  Only the concurrent kinds have more than one request
 * in flight.  It prints "begin" before the first.
 *
 * usage: in an initramfs as /init, with the modules in /modules, named in the order to load them
 */

#include "initramfs.h"
#include <linux/aio_abi.h>
#include <string.h>

enum { BLOCK = 4096, LARGE = 1 << 20, MANY = 512, FEW = 16, DEPTH = 16 };

static uint64_t ticks(void)
{
	uint64_t now;

	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(now) : : "memory");
	return now;
}

/* The same places in every run, no two adjacent in sequence */
static off_t place(unsigned n, off_t size)
{
	return (off_t)(n * 7919u % (size / BLOCK)) * BLOCK;
}

static void report(const char *name, uint64_t since, unsigned count)
{
	printf("%s %llu %u\n", name, (unsigned long long)(ticks() - since), count);
}

/* MANY requests, DEPTH of them at a time. */
static void concurrent(int fd, int opcode, char *buffer, off_t size)
{
	aio_context_t context = 0;
	struct iocb blocks[DEPTH], *next;
	struct io_event events[DEPTH];
	unsigned started = 0;

	must(syscall(SYS_io_setup, DEPTH, &context), 0, "io_setup");
	memset(blocks, 0, sizeof(blocks));
	for (int n = 0; n < DEPTH; n++) {
		events[n].obj = (uintptr_t)&blocks[n];
		blocks[n].aio_lio_opcode = opcode;
		blocks[n].aio_fildes = fd;
		blocks[n].aio_buf = (uintptr_t)buffer + n * BLOCK;
		blocks[n].aio_nbytes = BLOCK;
	}
	for (int ready = DEPTH, flying = 0; ready || flying;) {
		for (int n = 0; n < ready && started < MANY; n++, flying++) {
			next = (struct iocb *)(uintptr_t)events[n].obj;
			next->aio_offset = place(started++, size);
			must(syscall(SYS_io_submit, context, 1, &next), 1, "io_submit");
		}
		ready = flying ? syscall(SYS_io_getevents, context, 1, DEPTH, events, NULL) : 0;
		for (int n = 0; n < ready; n++, flying--)
			must(events[n].res, BLOCK, "a request");
	}
	syscall(SYS_io_destroy, context);
}

static void measure(int fd, char *buffer, off_t size)
{
	uint64_t since;

	for (unsigned n = 0; n < 50; n++) /* a warm-up */
		must(pread(fd, buffer, BLOCK, place(n, size)), BLOCK, "pread");
	report("begin", ticks(), 1);
	since = ticks();
	for (unsigned n = 0; n < MANY; n++)
		must(pread(fd, buffer, BLOCK, place(n, size)), BLOCK, "pread");
	report("random_read", since, MANY);
	since = ticks();
	for (unsigned n = 0; n < MANY; n++)
		must(pwrite(fd, buffer, BLOCK, place(n, size)), BLOCK, "pwrite");
	report("random_write", since, MANY);
	since = ticks();
	for (unsigned n = 0; n < FEW; n++)
		must(pread(fd, buffer, LARGE, (off_t)n * LARGE), LARGE, "pread");
	report("sequential_read", since, FEW);
	since = ticks();
	for (unsigned n = 0; n < FEW; n++)
		must(pwrite(fd, buffer, LARGE, (off_t)n * LARGE), LARGE, "pwrite");
	report("sequential_write", since, FEW);
	since = ticks();
	for (unsigned n = 0; n < FEW; n++) {
		must(pwrite(fd, buffer, BLOCK, place(n, size)), BLOCK, "pwrite");
		must(fsync(fd), 0, "fsync");
	}
	report("write_and_flush", since, FEW);
	since = ticks();
	concurrent(fd, IOCB_CMD_PREAD, buffer, size);
	report("concurrent_read", since, MANY);
	since = ticks();
	concurrent(fd, IOCB_CMD_PWRITE, buffer, size);
	report("concurrent_write", since, MANY);
}

int main(void)
{
	uint64_t frequency;
	char *buffer = NULL;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	int fd = open("/dev/vda", O_RDWR | O_DIRECT);
	off_t size = lseek(fd, 0, SEEK_END);

	if (fd < 0 || posix_memalign((void **)&buffer, LARGE, LARGE))
		perror("/dev/vda");
	else
		measure(fd, buffer, size);
	asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	printf("frequency %llu 1\n", (unsigned long long)frequency);
	sync();
	reboot(RB_POWER_OFF);
}
