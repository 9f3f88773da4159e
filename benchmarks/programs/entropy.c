/*
 * The first program of a Linux guest with a virtio entropy device.  It reads /dev/hwrng, whose core
 * asks the device for 64 bytes at a time.  It prints as block.c does, and switches off.
 *
 * usage: in an initramfs as /init, with the modules in /modules, named in the order to load them
 */

#include "initramfs.h"

enum { PIECE = 64, MANY = 512 };

static uint64_t ticks(void)
{
	uint64_t now;

	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(now) : : "memory");
	return now;
}

int main(void)
{
	char bytes[PIECE];
	uint64_t since, frequency;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	int fd = open("/dev/hwrng", O_RDONLY);

	for (int n = 0; n < 50; n++) /* a warm-up */
		must(read(fd, bytes, PIECE), PIECE, "/dev/hwrng");
	printf("begin %llu 1\n", (unsigned long long)ticks());
	since = ticks();
	for (int n = 0; n < MANY; n++)
		must(read(fd, bytes, PIECE), PIECE, "/dev/hwrng");
	printf("entropy %llu %u\n", (unsigned long long)(ticks() - since), MANY);
	asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
	printf("frequency %llu 1\n", (unsigned long long)frequency);
	reboot(RB_POWER_OFF);
}
