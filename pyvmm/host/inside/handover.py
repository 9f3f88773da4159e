"""``python3 -m pyvmm.host.inside.handover NAME`` hands over its own descriptors 0 and 1.

They lead to a pty outside, through this process's session.  Whoever connects to the abstract
socket NAME gets them; the session, and with it the way out, lasts until that process hangs up.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """Wait for the one that asks, hand over, and wait until it hangs up."""
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
