"""``python3 -m pyvmm.host.inside.handover NAME`` passes its descriptors 0 and 1 to a process.

They lead to a pty outside, through this process's session.  The first process that connects to
the abstract socket NAME gets them.  The session lasts until that process hangs up.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """Wait for a process to connect, pass the descriptors, and wait until it hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + sys.argv[1])
        listener.listen(1)
        connection, _ = listener.accept()
    with connection:
        socket.send_fds(connection, [b"\0"], [0, 1])
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        connection.recv(1)


if __name__ == "__main__":
    main()
