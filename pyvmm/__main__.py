"""The entry of the ``pyvmm`` command and of ``python -m pyvmm``; it imports few modules."""

from __future__ import annotations

import gc
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


if __name__ == "__main__":
    sys.exit(main())
