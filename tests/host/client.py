"""``python -m tests.host.client DIRECTORY COMMAND...``: run a command through tests.host.agent.

The guest's terminals with numbers in $TTYS appear as ptys here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyvmm import cli
from pyvmm.host import bridges
from pyvmm.host.running import Running


def main() -> int:
    """Run the command; report errors as pyvmm does."""
    facts = {"qemu": "none", "settings": {"cpu": "any"}}
    running = Running(Path(sys.argv[1]), "start", 0, facts)
    ttys = map(int, os.environ.get("TTYS", "").split())
    try:
        return bridges.run_with_ttys(running, sys.argv[2:], ttys)
    except BaseException as error:
        return cli.report(error)


if __name__ == "__main__":
    sys.exit(main())
