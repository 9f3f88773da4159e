"""``pyvmm man``: the manual page, made from the commands' help.

Source of the format: man(7), groff_man(7).
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
import time
from collections.abc import Iterable, Iterator

import click

from pyvmm import __version__
from pyvmm.cli import pyvmm

WIDTH = 78  # columns of the page's source
EXIT_CODES = (
    ("0", "Success; the guest switched itself off."),
    ("N", "The guest wrote N to pyvmm's exit register."),
    ("1", "The guest, or a check, failed."),
    ("2", "Usage: the request is invalid on every machine."),
    ("3", "The host lacks something."),
    ("124", "`--timeout` ran out."),
    ("128+N", "Signal N ended the command."),
)
VARIABLES = (
    ("PYVMM_COMMAND_OPTION", "Every option: `PYVMM_RUN_MEM=512` is `pyvmm run --mem 512`."),
    ("PYVMM_HOST_IDLE", "Seconds without a command after which an emulated host ends."),
    (
        "PYVMM_HOST_FILES",
        "all: commands in an emulated host see every file, not only the named ones.",
    ),
    ("PYVMM_DEBIAN_MIRROR", "The URL of the Debian mirror, if apt's configuration names none."),
    ("XDG_CACHE_HOME", "Packages, kernels and saved hosts are in `pyvmm` below it."),
    ("XDG_RUNTIME_DIR", "The sockets of running VMs and hosts are in `pyvmm` below it."),
)


@click.command(epilog="To read it: pyvmm man | man -l -")
def man() -> None:
    """Print the manual page."""
    click.echo("\n".join(page()))


def page() -> Iterator[str]:
    """Yield the lines of pyvmm(1)."""
    built = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())  # reproducible-builds.org
    date = time.strftime("%Y-%m-%d", time.gmtime(built))
    yield f'.TH PYVMM 1 "{date}" "pyvmm {__version__}" "User Commands"'
    summary = pyvmm.get_short_help_str(200).rstrip(".")
    yield from (".SH NAME", f"pyvmm \\- {_escaped(summary)}")
    root = click.Context(pyvmm, info_name="pyvmm", **pyvmm.context_settings)
    yield from (".SH SYNOPSIS", *_usage(root))
    yield from (".SH DESCRIPTION", *_text(pyvmm.help or ""))
    yield from (".SH OPTIONS", *_options(root))
    yield ".SH COMMANDS"
    yield from _commands(root)
    yield from (".SH ENVIRONMENT", *_table(VARIABLES))
    yield from (".SH EXIT STATUS", *_table(EXIT_CODES))


def _commands(parent: click.Context) -> Iterator[str]:
    """Yield a section for each command of a group, and for commands below it."""
    group = parent.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is None or command.hidden:
            continue
        context = click.Context(command, parent=parent, info_name=name, **command.context_settings)
        yield f".SS {_escaped(context.command_path)}"
        yield from (*_usage(context), ".PP", *_text(command.help or ""), *_options(context))
        yield from _text(command.epilog or "", before=".PP")
        if isinstance(command, click.Group):
            yield from _commands(context)


def _usage(context: click.Context) -> Iterator[str]:
    words = " ".join(context.command.collect_usage_pieces(context))
    yield f"\\fB{_escaped(context.command_path)}\\fR {_escaped(words)}".rstrip()


def _options(context: click.Context) -> Iterator[str]:
    """Yield the options; --help only for pyvmm. The command's text describes its arguments."""
    own = context.command.get_params(context) if context.parent is None else context.command.params
    records = (param.get_help_record(context) for param in own)
    yield from _table(record for record in records if record is not None and record[1])


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, meaning in rows:
        yield from (".TP", f"\\fB{_escaped(name)}\\fR", *_text(meaning))


def _text(text: str, before: str = "") -> Iterator[str]:
    """Yield paragraphs, with `code` in bold; click's preformatted ones stay as they are."""
    for number, paragraph in enumerate(filter(None, inspect.cleandoc(text).split("\n\n"))):
        if number or before:
            yield before or ".PP"
        lines = paragraph.split("\n")
        if lines[0] == "\b":
            yield from (".nf", *(_guarded(_marked(line)) for line in lines[1:]), ".fi")
        else:
            words = _marked(" ".join(lines))
            yield from map(_guarded, textwrap.wrap(words, WIDTH, break_on_hyphens=False))


def _marked(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _escaped(text))


def _escaped(text: str) -> str:
    """Escape text for troff."""
    return text.replace("\\", "\\e").replace("-", "\\-")


def _guarded(line: str) -> str:
    """Keep troff from reading a line as a request."""
    return f"\\&{line}" if line[:1] in (".", "'") else line
