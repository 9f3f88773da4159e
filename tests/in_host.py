"""Run the tests marked `kvm` where there is an arm64 /dev/kvm: here, or in the emulated host.

Inside, the interpreter and pyvmm are the emulated host's; pytest and hypothesis, being pure
Python, are this environment's.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from pyvmm.host import HostSettings, forward, is_local

PYTEST = ["python3", "-m", "pytest", "-m", "kvm", "-p", "no:cacheprovider"]


def main() -> int:
    """Run pytest with the arguments given; returns its exit code."""
    arguments = sys.argv[1:]
    chosen = {
        name: value
        for name in ("kernel", "qemu", "cpu")
        if (value := os.environ.get(f"PYVMM_HOST_{name.upper()}"))
    }
    settings = HostSettings(**chosen)
    if is_local(settings):
        os.execv(sys.executable, [sys.executable, *PYTEST[1:], *arguments])
    os.environ["PYTHONPATH"] = sysconfig.get_path("purelib")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return forward(settings, [*PYTEST, *arguments])


if __name__ == "__main__":
    sys.exit(main())
