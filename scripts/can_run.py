#!/usr/bin/env python3
"""Check that this machine's KVM can be used, before `make run` downloads anything.

It refuses an arm64 machine whose /dev/kvm cannot be opened, with the reason and the remedy. Every
other machine passes: it has KVM, or gets an emulated host.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
OLDEST = (3, 11)


def main() -> int:
    """Return 0, or print why guests cannot run and return the error's exit code."""
    if sys.version_info < OLDEST:  # make_venv.py refuses this Python, with a remedy
        return 0
    from pyvmm.errors import VmmError
    from pyvmm.host import HostSettings, is_local

    try:
        is_local(HostSettings(kind=os.environ.get("PYVMM_HOST") or "auto"))
    except VmmError as error:
        print(f"pyvmm: {error}\n  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
