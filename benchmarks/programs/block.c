/*
 * The first program of a Linux guest with a disk: it loads the disk's driver, reads and writes with
 * O_DIRECT, and prints for each kind of request its name, ticks of the virtual counter, and how
 * many there were; then it switches off.
 *
 * usage: in an initramfs as /init, with the modules in /modules, named in the order to load them
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK = 4096, LARGE = 1 << 20, MANY = 500, FEW = 16 };

static uint64_t ticks(void)
{
	uint64_t now;

	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(now) : : "memory");
	return now;
}

static void load_modules(void)
{
	struct dirent **found;
	int count = scandir("/modules", &found, NULL, alphasort);

	for (int n = 0; n < count; n++) {
		char path[300];

		if (found[n]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", found[n]->d_name);
		int fd = open(path, O_RDONLY);

		if (syscall(SYS_finit_module, fd, "", 0))
			printf("%s is not loaded\n", path);
		close(fd);
	}
}

/* The same places in every run, and no two neighbours */
static off_t place(unsigned n, off_t size)
{
	return (off_t)(n * 7919u % (size / BLOCK)) * BLOCK;
}

static void report(const char *name, uint64_t since, unsigned count)
{
	printf("%s %llu %u\n", name, (unsigned long long)(ticks() - since), count);
}

static void must(ssize_t got, ssize_t wanted, const char *what)
{
	if (got != wanted) {
		perror(what);
		reboot(RB_POWER_OFF);
	}
}

static void measure(int fd, char *buffer, off_t size)
{
	uint64_t since;

	for (unsigned n = 0; n < 50; n++) /* a warm-up */
		must(pread(fd, buffer, BLOCK, place(n, size)), BLOCK, "pread");
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
