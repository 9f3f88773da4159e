/* Common code of the first programs of Linux guests. */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Load the modules in /modules, in the order of their names */
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

static void must(ssize_t got, ssize_t wanted, const char *what)
{
	if (got != wanted) {
		perror(what);
		reboot(RB_POWER_OFF);
	}
}
