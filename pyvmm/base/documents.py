"""JSON files that a user names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from pyvmm.errors import UsageError

LARGEST: Final = 1 << 20  # bytes of a document

T = TypeVar("T")


def read_limited(path: Path, hint: str) -> bytes:
    """Return the bytes of a file, at most one more than the largest document has.

    Raises: UsageError, with that hint.
    """
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error


def read_document(path: Path, decode: Callable[[Any], T], what: str, hint: str) -> T:
    """Return what ``decode`` makes of the JSON in a file; ``what`` names what the file must be.

    ``decode`` may raise ValueError, KeyError or TypeError for a document that it does not know.

    Raises: UsageError, with that hint.
    """
    data = read_limited(path, hint)
    try:
        if len(data) > LARGEST:
            raise ValueError
        return decode(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path}: not {what}", hint=hint) from None
