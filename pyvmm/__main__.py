"""The entry of the ``pyvmm`` command and of ``python -m pyvmm``; it imports few modules."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C during the imports ends it without a traceback.

    Garbage collection is off while modules load, because loading creates no garbage.
    """
    gc.disable()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pyvmm import cli

    signal.signal(signal.SIGINT, before)
    return cli.main(owns_process=True)


def entry() -> None:
    """Run the command line and end the process; leave the freeing of its memory to the kernel.

    Python would free each object: 12 million instructions. It joins all threads but daemons, and
    then calls the functions of atexit, the last registered first. So _end() comes after those of
    pyvmm. It skips only functions that were registered before pyvmm was imported.
    """
    codes: list[int] = []
    atexit.register(_end, codes)
    codes.append(main())
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    """End the process, unless an error ended main() or Python has to report one of its output."""
    if not codes:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(codes[0])


if __name__ == "__main__":
    entry()
