"""Where the ``pyvmm`` command, or ``python -m pyvmm``, begins: it imports as little as it can."""

from __future__ import annotations

import gc
import signal
import sys


def main() -> int:
    """Run the command line; a Ctrl-C while it is still being loaded ends it without a word.

    Until the verb is loaded nobody looks for garbage: there is none among what modules define.
    """
    gc.disable()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pyvmm import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
