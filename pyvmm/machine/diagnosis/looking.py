"""How often a guest that makes no progress is looked at, until the cause shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pyvmm.machine.diagnosis.rules import Look, diagnose

APART_S: Final = 0.05  # between two looks at a guest
LOOKS: Final = 4  # how many times a guest is looked at again before it is only described


def explain(look: Callable[[], Look], silent: Callable[[], bool], *, sure: bool) -> str | None:
    """Return why a guest makes no progress, or None; ``look`` stops it for a moment.

    With ``sure`` the text names a cause. Without ``sure`` it can also describe a guest that is
    ``silent``: then the guest gets some more time to show a cause, for its vCPUs may just have
    started.
    """
    second = look()
    for left in reversed(range(1 if sure else LOOKS)):
        first = second
        time.sleep(APART_S)
        second = look()
        why = diagnose([first, second], silent=silent(), sure=sure or left > 0)
        if why is not None:
            return why
    return None
