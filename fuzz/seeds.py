"""Write the inputs that a target begins with: ``python -m fuzz.seeds NAME DIRECTORY``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from fuzz.target import load


def write(name: str, directory: Path) -> int:
    """Write a target's seeds, each under its hash; return how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    seeds = list(load(name).seeds())
    for data in seeds:
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return len(seeds)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
