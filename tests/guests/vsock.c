/*
 * Sockets of a Linux guest to its host.
 *
 *	vsock cid		print the guest's CID, as the device has it
 *	vsock echo PORT		accept a connection at a time, and return what it sends
 *	vsock send PORT		send the standard input to the host, then print what comes back
 */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static char buffer[1 << 16];

/* Copy to a file until the other end of ``from`` sends no more. */
static void copy(int from, int to)
{
	ssize_t got;

	while ((got = read(from, buffer, sizeof(buffer))) > 0) {
		for (ssize_t done = 0, part; done < got; done += part) {
			part = write(to, buffer + done, got - done);
			if (part < 0)
				err(1, "write");
		}
	}
	if (got < 0)
		warn("read");
}

int main(int argc, char **argv)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK };
	int peer, fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	const char *what = argc > 1 ? argv[1] : "";
	unsigned int cid;

	if (fd < 0)
		err(1, "socket");
	if (argc > 2)
		address.svm_port = atoi(argv[2]);
	if (strcmp(what, "cid") == 0) {
		int device = open("/dev/vsock", O_RDONLY);

		if (device < 0 || ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid))
			err(1, "/dev/vsock");
		printf("cid %u\n", cid);
	} else if (strcmp(what, "echo") == 0) {
		address.svm_cid = VMADDR_CID_ANY;
		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 8))
			err(1, "port %s", argv[2]);
		printf("listening\n");
		fflush(stdout);
		while ((peer = accept(fd, NULL, NULL)) >= 0) {
			copy(peer, peer);
			close(peer);
		}
		err(1, "accept");
	} else if (strcmp(what, "send") == 0) {
		address.svm_cid = VMADDR_CID_HOST;
		if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
			err(1, "connect");
		copy(0, fd);
		shutdown(fd, SHUT_WR);
		copy(fd, 1);
	} else {
		errx(2, "cid, echo PORT, or send PORT");
	}
	return 0;
}
