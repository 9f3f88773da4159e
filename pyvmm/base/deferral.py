"""Import click and pathlib without modules that they rarely use.

click imports inspect, uuid and datetime: 35 of the 115 million instructions that click costs at a
start. It needs little of inspect, and the others for types of options that pyvmm does not have.
It looks each of its messages up with gettext, but neither click nor pyvmm has translations.

pathlib imports urllib.parse, until Python 3.13: 9 million, and only Path.as_uri() needs it.

Here they get stand-ins for these modules. These have the functions that click calls. The first use
of another name imports the real module. Other modules that are imported later get the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, Final

# Each module that click imports, and its classes that click names during its import: for
# annotations, and for options of type click.DateTime, which pyvmm does not have.
DEFERRED: Final = {"inspect": (), "uuid": ("UUID",), "datetime": ("datetime",), "gettext": ()}
URLS: Final = "urllib.parse"
GUESSES: Final = "difflib"


class _NotImported:
    """A class of a module that is not imported."""


def one_line_cleandoc(text: str) -> str:
    """Return what inspect.cleandoc returns; click calls it for the help of each option."""
    if "\n" in text:
        from inspect import cleandoc

        return cleandoc(text)
    return text.expandtabs().lstrip()


def isfunction(value: object) -> bool:
    """Return what inspect.isfunction returns; click calls it for the default values in help."""
    return isinstance(value, FunctionType)


def untranslated(message: str) -> str:
    """Return the message, as gettext does without a translation."""
    return message


def untranslated_number(singular: str, plural: str, number: int) -> str:
    """Return what gettext.ngettext returns without a translation."""
    return singular if number == 1 else plural


def quote_from_bytes(*given: Any, **named: Any) -> str:
    """Call the function of urllib.parse; Path.as_uri() does."""
    from urllib.parse import quote_from_bytes as real

    return real(*given, **named)


def close_matches(word: str, possibilities: Iterable[str]) -> list[str]:
    """Call difflib.get_close_matches for a long option; return nothing for a short one.

    click 8.5 looks each option up among the long ones first. Then it discards the guesses for a
    short one.
    """
    if not word.startswith("--"):
        return []
    sys.modules.pop("difflib", None)
    from difflib import get_close_matches

    return get_close_matches(word, possibilities)


# The functions that stand-ins have, by module.
OURS: Final[dict[str, dict[str, Any]]] = {
    "inspect": {"cleandoc": one_line_cleandoc, "isfunction": isfunction},
    "gettext": {"gettext": untranslated, "ngettext": untranslated_number},
    URLS: {"quote_from_bytes": quote_from_bytes},
    GUESSES: {"get_close_matches": close_matches},
}


class StandIn(ModuleType):
    """A module that is imported when one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # importlib looks for __path__
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            if name in DEFERRED.get(self.__name__, ()):
                return _NotImported
            del sys.modules[self.__name__]
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


def import_pathlib() -> None:
    """Import pathlib without urllib.parse, unless it is imported already."""
    with _deferred(URLS):
        import_module("pathlib")


def rarely_used_modules_deferred() -> AbstractContextManager[None]:
    """Let an import of click in the block take stand-ins for modules that are not yet imported."""
    return _deferred(*DEFERRED)


def short_options_unguessed() -> AbstractContextManager[None]:
    """Let click parse short options in the block without guessing which long ones are meant."""
    return _deferred(GUESSES)


@contextmanager
def _deferred(*names: str) -> Iterator[None]:
    ours = {name: StandIn(name) for name in names if name not in sys.modules}
    for name, stand_in in ours.items():
        vars(stand_in).update(OURS.get(name, {}))
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name, stand_in in ours.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
