"""What a reproduction is made of: options, a case to work on, evidence, and the verdict on it.

The work is done on the machine whose KVM is meant and returns evidence, plain data for JSON.
The verdict is a function of the evidence alone, so that it can be found again from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyvmm.base.records import Record, made
from pyvmm.errors import EXIT_FAILED, EXIT_HOST, EXIT_OK, UsageError

PACKAGE = Path(__file__).resolve().parent.parent
Settings = dict[str, Any]
Evidence = dict[str, Any]

# A verdict's exit code by what it says about the bug that was looked for.
NOT_THERE, THERE, CANNOT_TELL = EXIT_OK, EXIT_FAILED, EXIT_HOST


class Option(Record, kw_only=True):
    """One setting of a reproduction, as the command line takes it.

    ``parse`` makes a value of the text, or of None where there is no default, and raises
    UsageError.
    """

    name: str
    help: str
    default: str | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None

    @property
    def key(self) -> str:
        """The name as settings have it."""
        return self.name.replace("-", "_")


class Case(Record, kw_only=True):
    """What a worker gets: which reproduction, how, and where the files lie that it needs."""

    reproduction: str
    settings: Settings
    files: Mapping[str, str]
    seed: int = 1
    module: str | None = None  # a kernel module, ready to load

    def path(self, name: str) -> Path:
        """Where a file of the case is."""
        return Path(self.files[name])


class Finding(Record):
    """The verdict: its name, the exit code it stands for, and why, in sentences."""

    verdict: str
    code: int
    why: tuple[str, ...] = ()
    advice: str = ""


class Curve(Record, kw_only=True):
    """What to draw of the evidence of many runs: a line for each, over the same axes."""

    x: str
    y: str
    points: Callable[[Evidence], Mapping[int, int]]


def as_they_are(settings: Settings) -> Iterable[tuple[str, Settings]]:
    """The variants of a reproduction that has but one."""
    return [("", settings)]


class Reproduction(Record, kw_only=True):
    """One bug, and everything that shows whether a machine has it.

    ``files`` are what the work needs of pyvmm's own, by name. ``module`` is the source of a kernel
    module, built for the machine's kernel where ``wants_module`` says so. ``show`` puts evidence
    into lines for people. ``variants`` are the settings that each host of a matrix is tried with,
    and their names; ``curve`` is what its picture shows.
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
    variants: Callable[[Settings], Iterable[tuple[str, Settings]]] = as_they_are
    curve: Curve | None = None

    def read(self, texts: Mapping[str, Any]) -> Settings:
        """Settings of what was typed, by the options' keys; what is missing has its default.

        Raises: UsageError, where something makes no sense.
        """
        settings = {}
        for option in self.options:
            text = texts.get(option.key, option.default)
            if not isinstance(text, str if option.default is not None else str | None):
                raise UsageError(f"--{option.name}: {text!r} is no text")
            if option.choices and text not in option.choices:
                raise UsageError(f"--{option.name} {text}: not one of {', '.join(option.choices)}")
            settings[option.key] = option.parse(text) if option.parse else text
        return settings

    def defaults(self) -> Settings:
        """The settings nobody said anything about."""
        return self.read({})

    def is_guest(self, name: str) -> bool:
        """Whether one of the files only ever runs as a guest, which nobody needs to trust."""
        return self.files[name].parent == PACKAGE / "guests"


def guest(name: str) -> Path:
    """Where a guest of pyvmm's own lies."""
    return PACKAGE / "guests" / name


def program(name: str) -> Path:
    """Where a program for an arm64 host of pyvmm's own lies."""
    return PACKAGE / "programs" / name
