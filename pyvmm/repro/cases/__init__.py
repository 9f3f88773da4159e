"""The reproductions: each module of this package has one as ``REPRODUCTION``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from pyvmm.errors import UsageError
from pyvmm.repro.model import Reproduction


@cache
def all_cases() -> dict[str, Reproduction]:
    """Return every reproduction by name."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    found = [module.REPRODUCTION for module in modules]
    return {case.name: case for case in found}


def find(name: str) -> Reproduction:
    """Return the reproduction of that name.  Raises: UsageError."""
    try:
        return all_cases()[name]
    except KeyError:
        known = ", ".join(all_cases())
        raise UsageError(f"no reproduction is named {name}", hint=f"choose from {known}") from None
