"""Errors of tools: the error shows the last lines of output, and a log has all of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cache_dir
from pyvmm.errors import HostError

LAST_LINES: Final = 10


def failure(
    what: str, stderr: str, *, whole: str | None = None, log: Path | None = None,
    hint: str | None = None,
) -> HostError:  # fmt: skip
    """Return the error for a failed tool: ``what`` failed, with the last lines of ``stderr``.

    ``whole`` is the tool's complete output, by default ``stderr``.  If the error shows less than
    that, it names a log: ``log`` if there is one, else a new one.
    """
    whole = stderr if whole is None else whole
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    shown = lines[-LAST_LINES:] or ["no reason given"]
    message = f"{what}: {shown[0]}" if len(shown) == 1 else "\n    ".join([f"{what}:", *shown])
    if len(lines) > len(shown) or whole != stderr:
        log = log or _write_log(what, whole)
    if log is not None:
        message += f"\n  log: {log}"
    return HostError(message, hint=hint)


def _write_log(what: str, whole: str) -> Path | None:
    """Write a tool's output to its log in the cache; the next failure overwrites it."""
    with contextlib.suppress(OSError, HostError):  # the disk may be full
        path = cache_dir("logs") / f"{Path(what.split()[0]).name}.log"
        path.write_text(whole)
        return path
    return None
