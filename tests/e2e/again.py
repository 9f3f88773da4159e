"""In the emulated host: repeat a pyvmm command, each time in a process of its own.

The processes are forks, like those of the host's agent.

Usage: python3 -m tests.e2e.again TIMES EXPECTED-CODE pyvmm-argument...
"""

from __future__ import annotations

import os
import sys

from pyvmm.__main__ import main as pyvmm


def main() -> int:
    """Run the command TIMES times, or until it ends with another code."""
    times, expected = int(sys.argv[1]), int(sys.argv[2])
    sys.argv = ["pyvmm", *sys.argv[3:]]
    for number in range(times):
        child = os.fork()
        if not child:
            code = 1
            try:
                code = pyvmm()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != expected:
            print(f"number {number}: {code}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
