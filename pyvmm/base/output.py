"""Text for terminals, and standard output that has lost its reader."""

from __future__ import annotations

import os
import sys
from typing import Final, TextIO

LONGEST: Final = 2000  # characters of a message, or of a line of output
INDENTED: Final = "\n  "  # starts a further line of a message


def printable(text: str) -> str:
    """Return text that a terminal shows and does not obey, on one line and not too long.

    Files, guests and other processes provide parts of it. Control characters (C0 and C1), marks
    that change the direction of text, and lone surrogates become escapes.
    """
    return _escaped(_cut(text))


def printable_lines(text: str) -> str:
    """Do the same with a message of several lines; indent all but the first."""
    return INDENTED.join(map(_escaped, _cut(text).split(INDENTED)))


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... ({len(text)} characters)"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def discard_stdout() -> None:
    """Send standard output nowhere, so that Python does not fail to flush it at exit."""
    _discard(sys.stdout)


def discard_stderr() -> None:
    """Send standard error nowhere, so that Python does not fail to flush it at exit."""
    _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    # A confined process cannot open /dev/null to write.
    nowhere = os.memfd_create("nowhere")
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
