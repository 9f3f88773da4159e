"""``python -m tests.host.client DIRECTORY COMMAND...``: run a command through tests.host.agent."""

from __future__ import annotations

import sys
from pathlib import Path

from pyvmm import cli
from pyvmm.host import client
from pyvmm.host.running import Running


def main() -> int:
    """Run it; errors end as the pyvmm command's do."""
    running = Running(Path(sys.argv[1]), "start", 0, {})
    try:
        return client.run(running, sys.argv[2:], "a test")
    except BaseException as error:
        return cli.report(error)


if __name__ == "__main__":
    sys.exit(main())
