"""One target: ``python -m fuzz.target NAME [OPTION or DIRECTORY...]`` runs atheris.

The options are libFuzzer's.  With files in place of them, it runs the target once for each file,
also without atheris: to see a crash again.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE / "corpus"
CRASHES: Final = HERE / "crashes"

# Seconds, MiB, and longer inputs early: most targets read many short operations.
OPTIONS: Final = ("-timeout=60", "-rss_limit_mb=4096", "-len_control=20")
OWN_SHARE: Final = 0.7  # of the mutations, if a target has its own

# The targets in Python, by their module's name, and the most bytes of an input.
TARGETS: Final = {
    "snapshot_file": 8192,
    "snapshot_state": 16384,
    "devicestate": 4096,
    "control": 4096,
    "replies": 8192,
    "image": 16384,
    "devicetree": 2048,
    "virtio": 2048,
    "emulation": 2048,
    "host": 4096,
    "capsule": 4096,
}


class Target(Protocol):
    """A module of fuzz.targets; it may have ``mutate(data, most, seed)`` too."""

    def check(self, data: bytes) -> None:
        """Raise an exception if pyvmm has a fault with that input."""

    def seeds(self) -> Iterator[bytes]:
        """Yield inputs to begin with."""


def load(name: str) -> Target:
    """Import a target."""
    return importlib.import_module(f"fuzz.targets.{name}")


def stored(name: str) -> list[Path]:
    """Return the files of a target in the tree: its corpus, and the inputs that were crashes."""
    return sorted([*(CORPUS / name).glob("*"), *(CRASHES / name).glob("*")])


def main(name: str, arguments: list[str]) -> int:
    """Fuzz a target, or run it for files."""
    files = [Path(word) for word in arguments if Path(word).is_file()]
    if files:
        target = load(name)
        for path in files:
            print(f"{name}: {path}", file=sys.stderr)
            target.check(path.read_bytes())
        return 0
    return _fuzz(name, arguments)


def _never(data: bytes, most: int, seed: int) -> bytes | None:
    """Stand for the mutations of a target that has none of its own."""
    return None


def _fuzz(name: str, arguments: list[str]) -> int:
    try:
        import atheris
    except ImportError:
        print("fuzz: atheris is not installed: `make fuzz` installs it", file=sys.stderr)
        return 3
    with atheris.instrument_imports(include=["pyvmm"]):  # also what the target imports later
        target = load(name)
        mutate: Callable[[bytes, int, int], bytes | None] = getattr(target, "mutate", _never)

        def mutator(data: bytes, most: int, seed: int) -> bytes:
            own = random.Random(seed).random() < OWN_SHARE
            changed = mutate(data, most, seed) if own else None
            return bytes(atheris.Mutate(data, most)) if changed is None else changed

        extra = {} if mutate is _never else {"custom_mutator": mutator}
        options = [f"-max_len={TARGETS[name]}", *OPTIONS, *arguments]
        # A merge starts the first word again, as a command of the shell.
        again = f"{sys.executable} -m fuzz.target {name}"
        atheris.Setup([again, *options], target.check, **extra)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
