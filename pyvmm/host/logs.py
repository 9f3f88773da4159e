"""What a tool said before it failed: its last lines in the error, all of it in a log."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cache_dir
from pyvmm.errors import HostError

LAST_LINES: Final = 10


def failure(
    what: str, said: str, *, whole: str | None = None, log: Path | None = None,
    hint: str | None = None,
) -> HostError:  # fmt: skip
    """The error for a tool that failed: ``what`` failed, and what it said last.

    ``whole`` is all the tool said, where ``said`` is not; the error names the log that has it, if
    that is more than it shows.  ``log`` is that log where there is one already.
    """
    whole = said if whole is None else whole
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    shown = lines[-LAST_LINES:] or ["no reason given"]
    message = f"{what}: {shown[0]}" if len(shown) == 1 else "\n    ".join([f"{what}:", *shown])
    if len(lines) > len(shown) or whole != said:
        log = log or _kept(what, whole)
    if log is not None:
        message += f"\n  log: {log}"
    return HostError(message, hint=hint)


def _kept(what: str, whole: str) -> Path | None:
    """Keep what a tool said in the cache, under its name; the next failure takes its place."""
    with contextlib.suppress(OSError, HostError):  # the disk may be what is full
        path = cache_dir("logs") / f"{Path(what.split()[0]).name}.log"
        path.write_text(whole)
        return path
    return None
