"""Kinds of options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvmm.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])
Option = Callable[[Any], Any]

STREAM = Path("-")


class FileName(click.Path):
    """The type of a file's name. An empty one would be the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty name."""
        if value == "":
            raise UsageError(
                f"{param.opts[-1] if param else 'file'}: the file's name is empty",
                hint="a shell's variable without a value gives an empty name",
            )
        return super().convert(value, param, ctx)


class NewSnapshot(FileName):
    """The type of a snapshot to write: it is a file, because its first page is written last."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse standard output."""
        path = super().convert(value, param, ctx)
        if path == STREAM:
            raise UsageError(
                "-: a snapshot cannot be written to standard output",
                hint="name a file; `pyvmm snapshot export FILE -` then writes it packed",
            )
        return path


FILE = FileName(dir_okay=False, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_SNAPSHOT = NewSnapshot(dir_okay=False, path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

trust_option = click.option(
    "--trust", is_flag=True,
    help="Open all files that the snapshot names, even if you did not save it here.",
)  # fmt: skip


def file_option(name: str, text: str, metavar: str = "FILE", kind: click.Path = FILE) -> Option:
    """Return an option that names a file."""
    return click.option(name, type=kind, metavar=metavar, help=text)


def added(*options: Option) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options to a command, in this order."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


no_sandbox = click.option(
    "--no-sandbox", is_flag=True,
    help="Do not confine the VM's process (files, system calls), to debug pyvmm.",
)  # fmt: skip
