"""The ``pyvmm`` command: find the verb, and turn every error into a message and an exit code.

A verb's module is imported when the verb is used, to keep every start short.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pyvmm.base.deferral import import_pathlib, rarely_used_modules_deferred
from pyvmm.base.output import discard_stderr, discard_stdout, printable, printable_lines
from pyvmm.base.records import Record
from pyvmm.errors import EXIT_FAILED, EXIT_HOST, EXIT_OK, EXIT_SIGNAL, EXIT_USAGE, VmmError

with rarely_used_modules_deferred():
    import click

# The reasons why standard output cannot be written; errors of other files have a file name.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
BUG_HINT = "this is a bug in pyvmm, not in what you did; `pyvmm --debug ...` shows the traceback"


class Verb(Record):
    """A verb's module below pyvmm.commands, and its line in ``pyvmm --help``."""

    module: str
    summary: str
    function: str = ""  # if its name differs from the verb


VERBS = {
    "run": Verb("run", "Boot a guest and attach its console."),
    "list": Verb("vms.list", "Show running VMs.", "list_vms"),
    "stop": Verb("vms.state", "End VMs."),
    "save": Verb("vms.save", "Save a VM to a file."),
    "restore": Verb("restore", "Restore a VM from a file."),
    "pause": Verb("vms.state", "Stop VMs' vCPUs and clocks."),
    "resume": Verb("vms.state", "Resume paused VMs."),
    "stat": Verb("vms.stat", "Show VMs' exits, by reason and device."),
    "balloon": Verb("vms.balloon", "Take memory back from guests, or return it."),
    "memory": Verb("vms.memory", "Plug or unplug memory of a running guest."),
    "debug": Verb("vms.debug", "Show VMs' registers, page tables or devices, or send a sysrq."),
    "dump": Verb("vms.dump", "Write a running VM's memory and registers as a core file."),
    "gdb": Verb("gdb", "Debug a VM or a snapshot with gdb or lldb."),
    "snapshot": Verb("snapshot", "Show, compare and move snapshots."),
    "sve": Verb("sve", "Show, explain and check SVE vector lengths."),
    "cpu": Verb("cpu", "Show, compare and choose the CPU that guests see."),
    "sweep": Verb("sweep", "Run a guest at every set of SVE vector lengths."),
    "repro": Verb("repro", "Reproduce known bugs, or show their absence."),
    "doctor": Verb("doctor", "Show what this machine has and lacks."),
    "host": Verb("host", "Manage the emulated arm64 hosts."),
    "completion": Verb("completion", "Print a shell's completion of pyvmm."),
    "man": Verb("man", "Print the manual page."),
    "version": Verb("version", "Show pyvmm's version."),
}


class Invocation(Record, frozen=False):
    """The command line; every command can read it."""

    arguments: list[str]
    debug: bool = False
    owns_process: bool = False  # the process ends with the command, which may confine it


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    heading = "Commands"

    def __init__(self, *args: Any, verbs: Mapping[str, Verb], **options: Any) -> None:
        super().__init__(*args, **options)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs, the most used first."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module and take the command from it."""
        if cmd_name not in self.verbs:
            return None
        verb = self.verbs[cmd_name]
        import_pathlib()
        module = importlib.import_module(f"pyvmm.commands.{verb.module}")
        command = getattr(module, verb.function or cmd_name)
        if not gc.isenabled():  # __main__.py disabled it; what is loaded stays
            gc.freeze()
            gc.enable()
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section(self.heading):
            formatter.write_dl([(name, verb.summary) for name, verb in self.verbs.items()])


class Verbs(LazyGroup):
    """The verbs of pyvmm.

    kvm-unit-tests recognizes lkvm by the first four words of the heading.
    """

    heading = "The most commonly used pyvmm commands are"

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; if its output has no reader any more, exit with SIGPIPE's code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_stdout()
            raise SystemExit(EXIT_SIGNAL + signal.SIGPIPE) from None


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pyvmm import __version__

        click.echo(f"pyvmm {__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    verbs=VERBS,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "PYVMM",
        "show_default": True,
    },
    epilog="Every option of a verb is also an environment variable: PYVMM_RUN_MEM=512 is run's "
    "--mem 512. Exit codes: 0 success; 1 the guest or a verdict failed; 2 usage; 3 the host lacks "
    "something; 124 timeout; 128+n signal n; else the guest's.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show pyvmm's version.",
)  # fmt: skip
@click.pass_obj
def pyvmm(invocation: Invocation, debug: bool) -> None:
    """Run arm64 virtual machines on KVM, with exactly the SVE vector lengths you ask for."""
    invocation.debug = debug


def main(arguments: Sequence[str] | None = None, *, owns_process: bool = False) -> int:
    """Run the command line (by default this process's) and return its exit code.

    With ``owns_process`` a command that runs a VM confines the process, which cannot be undone. The
    caller must end after that.
    """
    _keep_standard_descriptors()
    given = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation(given, owns_process=owns_process)
    try:
        code = pyvmm.main(
            invocation.arguments, prog_name="pyvmm", standalone_mode=False, obj=invocation
        )
        sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.code, str):
            say(end.code)
            return EXIT_FAILED
        return end.code or EXIT_OK
    except BaseException as error:
        if invocation.debug:
            _print_traceback()
        return report(error)
    return code if isinstance(code, int) else EXIT_OK


def report(error: BaseException) -> int:
    """Print an error on stderr, and return its exit code."""
    match error:
        case VmmError():
            say(error.message, error.hint or _unseen(error))
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return EXIT_USAGE
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "pyvmm"
            # click lists choices behind tabs
            say(error.format_message().expandtabs(2), f"`{command} --help` shows the options")
            return EXIT_USAGE
        case click.ClickException():
            say(error.format_message())
            return EXIT_USAGE
        case click.Abort() | KeyboardInterrupt():
            return EXIT_SIGNAL + signal.SIGINT
        case BrokenPipeError():  # the last flush raised it
            discard_stdout()
            return EXIT_SIGNAL + signal.SIGPIPE
        case OSError() if error.filename is None and error.errno in FULL:
            discard_stdout()
            say(f"cannot write standard output: {error.strerror}")
            return EXIT_HOST
        case OSError() if part := _missing_part(error):
            return report(part)
        case _:
            say(f"unexpected {type(error).__name__}: {error}", BUG_HINT)
            return EXIT_FAILED


def _unseen(error: VmmError) -> str | None:
    """Return a hint for a file that a command in the emulated host does not see, or cannot write.

    A file that the command line names is seen if it exists.
    """
    from pyvmm.base.computer import TREE_VARIABLE

    cause = error.__cause__
    if not os.environ.get(TREE_VARIABLE) or not isinstance(cause, OSError):
        return None
    is_named = any(len(word) > 2 and word in error.message for word in sys.argv[1:])
    if cause.errno == errno.EROFS or (cause.errno == errno.ENOENT and not is_named):
        return (
            "a command in the emulated host sees only the files that it names, and writes only "
            "to those that it has to; PYVMM_HOST_FILES=all shows it all of your files"
        )
    return None


def _missing_part(error: OSError) -> VmmError | None:
    from pyvmm.base.dirs import missing_part  # lazily: rarely needed

    return missing_part(error)


def say(message: str, hint: str | None = None) -> None:
    """Print a message and its hint on stderr, with options in place of fields' names.

    Guests, files and others provide parts of the text: it goes through printable_lines().
    """
    fields: Any = importlib.import_module("pyvmm.commands._fields")  # lazily, like the verbs
    text = f"pyvmm: {printable_lines(fields.spell(message))}"
    if hint:
        text += f"\n  hint: {printable_lines(fields.spell(hint))}"
    try:
        click.echo(text, err=True)
    except OSError:  # a full disk: the exit code still tells
        discard_stderr()


def echo(line: str, *, err: bool = False) -> None:
    """Print one line on stdout or stderr; escape what a terminal would obey."""
    click.echo(printable(line), err=err)


def _print_traceback() -> None:
    import traceback  # lazily: rarely needed

    for line in traceback.format_exc().splitlines():
        click.echo(printable(line), err=True)


def _keep_standard_descriptors() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed.

    Otherwise the next file to be opened, such as /dev/kvm, would get the guest's output.
    """
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8", closefd=False))
