"""Mutations of JSON documents, for targets that read JSON."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.snapshot.mutations import leaves, mutate

MOST = 4096  # places of a document; a larger one is mutated as bytes


def mutated(data: bytes, most: int, seed: int) -> bytes | None:
    """Return a JSON document with one to three values changed; None, if the data is none."""
    try:
        document: Any = json.loads(data)
        where = list(leaves(document))
        if not 0 < len(where) <= MOST:
            return None
        changed = json.dumps(mutate(random.Random(seed), document, where), separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    return changed.encode() if len(changed) <= most else None
