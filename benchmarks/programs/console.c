/*
 * The first program of a Linux guest with a virtio console.  It loads the console's driver, writes
 * OUT_SIZE bytes between the lines "out" and "in", reads IN_SIZE bytes, prints "end", and switches
 * off.  After "out" and "end" it waits a while, for the stop watch.
 *
 * usage: in an initramfs as /init, with the modules in /modules
 */

#include "initramfs.h"
#include <termios.h>

enum { PIECE = 4096, A_WHILE = 300000 };

static int open_console(void)
{
	int fd;

	for (int n = 0; n < 1000; n++) { /* the probe takes a while */
		fd = open("/dev/hvc0", O_RDWR | O_NOCTTY);
		if (fd >= 0)
			break;
		usleep(10000);
	}
	return fd;
}

static void say(int fd, const char *text, size_t size)
{
	must(write(fd, text, size), size, "write");
	tcdrain(fd);
}

static void write_much(int fd)
{
	static char piece[PIECE];

	for (int n = 0; n < PIECE; n++)
		piece[n] = '.';
	for (int done = 0; done < OUT_SIZE; done += PIECE)
		must(write(fd, piece, PIECE), PIECE, "write");
	tcdrain(fd);
}

static void read_much(int fd)
{
	static char piece[PIECE];

	for (int done = 0; done < IN_SIZE;) {
		ssize_t got = read(fd, piece, PIECE);

		if (got <= 0)
			must(got, PIECE, "read");
		done += got;
	}
}

int main(void)
{
	struct termios how;

	mount("dev", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	int fd = open_console();

	must(tcgetattr(fd, &how), 0, "/dev/hvc0");
	cfmakeraw(&how);
	must(tcsetattr(fd, TCSANOW, &how), 0, "tcsetattr");
	say(fd, "\nout\n", 5);
	usleep(A_WHILE);
	write_much(fd);
	say(fd, "\nin\n", 4);
	read_much(fd);
	say(fd, "\nend\n", 5);
	usleep(A_WHILE);
	reboot(RB_POWER_OFF);
}
