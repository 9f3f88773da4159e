"""Several VMs from one snapshot, each in its own process; they share memory that they only read."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pyvmm import cli
from pyvmm.base.records import Record
from pyvmm.base.signals import handling
from pyvmm.errors import EXIT_FAILED, EXIT_OK, EXIT_SIGNAL

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Child(Record):
    """A VM's process, and a pipe with its output."""

    name: str
    pid: int
    output: int  # a descriptor


def run_several(file: Path, name: str, options: dict[str, Any]) -> int:
    """Run NAME-1 to NAME-N to their ends, and return the highest of their exit codes.

    The VM's name is printed before each line of its output.
    """
    numbers = range(1, options["count"] + 1)
    children = [_start(file, f"{name}-{number}", options) for number in numbers]
    lock = threading.Lock()

    def end(number: int, frame: object) -> None:
        """Pass a signal that ends this process on to the VMs, which then end."""
        for child in children:
            os.kill(child.pid, number)

    with handling(ENDING, end):
        shown = [threading.Thread(target=_show, args=(child, lock)) for child in children]
        for thread in shown:
            thread.start()
        for thread in shown:
            thread.join()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) for child in children]
    return max((code if code >= 0 else EXIT_SIGNAL - code for code in codes), default=EXIT_OK)


def _start(file: Path, name: str, options: dict[str, Any]) -> Child:
    """Fork a process for a VM; it has pyvmm's modules already."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(name, pid, reading)
    code = EXIT_FAILED
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        for fd in (null, reading, writing):
            os.close(fd)
        code = cli.main(
            ["restore", str(file), "--name", name, *_passed_on(options)], owns_process=True
        )
        sys.stdout.flush()
    finally:
        os._exit(code)


def _passed_on(options: dict[str, Any]) -> Iterator[str]:
    for option in ("clock", "memory", "timeout"):
        if options[option] is not None:
            yield f"--{option}={options[option]}"
    for option in ("disk", "pmem"):
        yield from (f"--{option}={value}" for value in options[option])
    for flag in ("force", "trust", "verbose", "debug", "no_sandbox"):
        if options[flag]:
            yield f"--{flag.replace('_', '-')}"


def _show(child: Child, lock: threading.Lock) -> None:
    """Print a VM's output line by line."""
    with open(child.output, "rb") as lines:  # noqa: PTH123 - a descriptor
        for line in lines:
            with lock:
                click.echo(f"{child.name}: ".encode() + line.rstrip(b"\r\n"))
