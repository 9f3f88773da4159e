"""Programs for an arm64 host that come with pyvmm; see programs/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self


class Executable:
    """A temporary copy of a program in memory: its file system may be mounted noexec."""

    def __init__(self, program: Path) -> None:
        self.fd = os.memfd_create(program.name)
        with os.fdopen(os.dup(self.fd), "wb") as copy:
            copy.write(program.read_bytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def numbers(text: str) -> dict[str, int]:
    """Return the NAME=NUMBER words of an answer as a table."""
    pairs = (word.partition("=") for word in text.split())
    return {name: int(value) for name, _, value in pairs}
