"""The corpora in the tree: few small inputs that together reach most of what is known."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuzz.runs import BUILD, command, corpus
from fuzz.target import CORPUS

LARGEST: Final = 24 << 10  # bytes of a target's corpus in the tree
MOST: Final = 40  # inputs of it


def minimise(names: Sequence[str]) -> int:
    """Replace the corpora in the tree by a choice from what was found; return the exit code."""
    for name in names:
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            merged = Path(scratch)
            words = command(name, "-set_cover_merge=1", scratch, *corpus(name))
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: the merge failed:\n{done.stderr[-2000:]}")
                return 1
            kept = choose([path.read_bytes() for path in sorted(merged.iterdir())])
        shutil.rmtree(CORPUS / name, ignore_errors=True)
        (CORPUS / name).mkdir(parents=True)
        for data in kept:
            (CORPUS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        print(f"{name}: {len(kept)} inputs, {sum(map(len, kept))} bytes")
    return 0


def choose(inputs: Sequence[bytes]) -> list[bytes]:
    """Return as many inputs as a corpus in the tree may have, of all sizes."""
    fitting = {data for data in inputs if len(data) <= LARGEST // 4}
    ordered = sorted(fitting, key=lambda data: (len(data), data))
    for count in range(min(MOST, len(ordered)), 0, -1):
        kept = [ordered[n * len(ordered) // count] for n in range(count)]
        if sum(map(len, kept)) <= LARGEST:
            return kept
    return []
