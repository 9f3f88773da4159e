"""Fork processes that save to one file until they are killed: python -m tests.snapshot.saver FILE.

For each line on stdin one process: its number is printed at once, and "dead" when it has ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot
from tests.snapshot.files import BASE, SIZE, noise

SEED = 1
LENGTH = SIZE // 8


def main(path: Path) -> None:
    """Fork a saver for each line."""
    with GuestMemory(BASE, SIZE) as memory:
        memory.write(BASE, noise(LENGTH, SEED))
        for _ in sys.stdin:
            child = os.fork()
            while not child:
                write_snapshot(path, {"seed": SEED}, [MemoryToSave(memory)])
            print(child, flush=True)
            os.waitpid(child, 0)
            print("dead", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
