"""A reproduction: options, a case to work on, evidence, and the verdict on it.

The work runs on the machine whose KVM is tested, and returns evidence: plain data for JSON.
The verdict is a function of the evidence alone, so that it can be computed again from a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyvmm.arm64 import vl
from pyvmm.base.dirs import PACKAGE
from pyvmm.base.records import Record, made
from pyvmm.errors import EXIT_FAILED, EXIT_HOST, EXIT_OK, UsageError

GUESTS = PACKAGE / "guests"
PROGRAMS = PACKAGE / "programs"  # for an arm64 host
Settings = dict[str, Any]
Evidence = dict[str, Any]
Variants = Iterable[tuple[str, Settings]]

# A verdict's exit code: the bug is absent, present, or unknown.
NOT_THERE, THERE, CANNOT_TELL = EXIT_OK, EXIT_FAILED, EXIT_HOST


class Option(Record, kw_only=True):
    """One setting of a reproduction, for the command line.

    ``parse`` converts the text and raises UsageError; it gets None for a missing option without a
    default.
    """

    name: str
    help: str
    default: str | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None

    @property
    def key(self) -> str:
        """The key in settings, and the field in errors."""
        return self.name.replace("-", "_")


class Case(Record, kw_only=True):
    """The input of a worker: the reproduction, its settings, and the paths of its files."""

    reproduction: str
    settings: Settings
    files: Mapping[str, str]
    seed: int = 1
    module: str | None = None  # a kernel module, ready to load

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return Path(self.files[name])


class Finding(Record):
    """A verdict: its name, its exit code, and the reasons in sentences."""

    verdict: str
    code: int
    why: tuple[str, ...] = ()
    advice: str = ""


class Curve(Record, kw_only=True):
    """The curves of a matrix's picture: one for each run, on common axes."""

    x: str
    y: str
    points: Callable[[Evidence], Mapping[int, int]]


class Reproduction(Record, kw_only=True):
    """One bug, and the test that shows whether a machine has it.

    ``files`` are files of pyvmm that the work needs.  ``module`` is the source of a kernel module,
    which is built for the host's kernel if ``wants_module`` returns true.  ``show`` formats the
    evidence as text.  ``variants`` returns the settings to run on each host of a matrix, with
    their names.  ``curve`` is for the matrix's picture.
    """

    name: str
    title: str
    options: tuple[Option, ...]
    work: Callable[[Case], Evidence]
    judge: Callable[[Settings, Evidence], Finding]
    show: Callable[[Settings, Evidence], Iterable[str]]
    files: Mapping[str, Path] = made(dict)
    module: Path | None = None
    wants_module: Callable[[Settings], bool] = lambda settings: False
    variants: Callable[[Settings], Variants] = lambda settings: [("", settings)]
    curve: Curve | None = None

    def read(self, texts: Mapping[str, Any]) -> Settings:
        """Parse settings by the options' keys; a missing one has its default.

        Raises: UsageError.
        """
        settings = {}
        for option in self.options:
            text = texts.get(option.key, option.default)
            if not isinstance(text, str if option.default is not None else str | None):
                raise UsageError(f"`{option.key}`: {text!r} is not text")
            if option.choices and text not in option.choices:
                choices = ", ".join(option.choices)
                raise UsageError(f"`{option.key}`={text}: not one of {choices}")
            settings[option.key] = option.parse(text) if option.parse else text
        return settings

    def is_guest(self, name: str) -> bool:
        """Return whether a file runs only as a guest, and so needs no trust."""
        return self.files[name].parent == GUESTS


def number_in(name: str, allowed: range) -> Callable[[str | None], int | None]:
    """Return a parser of whole numbers in a range, for one setting."""

    def parse(text: str | None) -> int | None:
        if text is None:
            return None
        if not re.fullmatch(r"\d{1,6}", text) or int(text) not in allowed:
            raise UsageError(f"`{name}`={text}: not from {allowed[0]} to {allowed[-1]}")
        return int(text)

    return parse


def parse_max_vl(text: str | None) -> int | None:
    """Read a guest's longest vector length, in bits.  Raises: UsageError."""
    return None if text is None else vl.parse_max(text, subject="`guest_max_vl`")
