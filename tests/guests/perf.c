/*
 * Count the cycles of a loop by perf_event_open(2), with an interrupt for each PERIOD of them.
 *
 * It prints the cycles and, from /proc/interrupts, the lines of the PMU before and after.
 */

#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PERIOD	1000000
#define ROUNDS	50000000

static void show_interrupts(const char *when)
{
	char line[4096];
	FILE *file = fopen("/proc/interrupts", "r");

	while (file && fgets(line, sizeof(line), file))
		if (strstr(line, "pmu"))
			printf("%s: %s", when, line);
	if (file)
		fclose(file);
}

int main(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_HARDWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_HW_CPU_CYCLES,
		.sample_period = PERIOD,
		.pinned = 1,
		.exclude_kernel = 1,
		.exclude_hv = 1,
	};
	volatile unsigned int round;
	uint64_t cycles;
	int fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);

	if (fd < 0) {
		perror("perf_event_open");
		return 1;
	}
	show_interrupts("before");
	for (round = 0; round < ROUNDS; round++)
		;
	if (ioctl(fd, PERF_EVENT_IOC_DISABLE, 0) || read(fd, &cycles, sizeof(cycles)) != sizeof(cycles)) {
		perror("cycles");
		return 1;
	}
	show_interrupts("after");
	printf("cycles: %llu\n", (unsigned long long)cycles);
	return 0;
}
