"""Import click without modules that it rarely uses.

click imports inspect, uuid and datetime: 35 of the 115 million instructions that click costs at a
start. It needs inspect for help, and the others for types of options that pyvmm does not have.

Here click gets stand-ins for these modules. The first use of a stand-in imports the real module.
Other modules that are imported later get the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

# Each module, and the classes of it that click names during its import: for annotations, and for
# options of type click.DateTime, which pyvmm does not have.
DEFERRED: Final = {"inspect": (), "uuid": ("UUID",), "datetime": ("datetime",)}


class _NotImported:
    """A class of a module that is not imported."""


def one_line_cleandoc(text: str) -> str:
    """Return what inspect.cleandoc returns; click calls it for the help of each option."""
    if "\n" in text:
        from inspect import cleandoc

        return cleandoc(text)
    return text.expandtabs().lstrip()


class StandIn(ModuleType):
    """A module that is imported when one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # importlib looks for __path__
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            if name in DEFERRED[self.__name__]:
                return _NotImported
            del sys.modules[self.__name__]
        value = getattr(__import__(self.__name__), name)
        setattr(self, name, value)
        return value


@contextmanager
def rarely_used_modules_deferred() -> Iterator[None]:
    """Let an import in the block take stand-ins for modules that are not yet imported."""
    ours = {name: StandIn(name) for name in DEFERRED if name not in sys.modules}
    if "inspect" in ours:
        ours["inspect"].cleandoc = one_line_cleandoc  # type: ignore[attr-defined]  # a module's
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name, stand_in in ours.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
