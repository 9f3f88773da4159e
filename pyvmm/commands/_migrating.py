"""``pyvmm run --migrate-on-prompt``: migrate a guest whenever it asks for that on its console.

The migration tests of kvm-unit-tests print a prompt, and wait for a key. Each time the guest's
process saves it and ends. A new process restores it, and the guest gets the key. A test that skips
its migration waits as well, and is served in the same way.

Source: kvm-unit-tests, lib/migrate.c and scripts/arch-run.bash (run_migration).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvmm import cli
from pyvmm.base.signals import handling
from pyvmm.errors import EXIT_FAILED, EXIT_SIGNAL

# A test that skips itself waits for a key too, after the second text.
PROMPTS: Final = (b"Now migrate the VM", b"Skipped VM migration")
KEY: Final = b"\n"
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVED: Final = EXIT_SIGNAL + signal.SIGTERM  # the exit code of a guest that was saved
CHUNK: Final = 1 << 16

Work = Callable[[Path], int]  # runs a guest, saves it to that file at SIGTERM, returns its code


class Migrating:
    """A guest that is migrated at each of its prompts."""

    def __init__(
        self, name: str, timeout_s: float | None, restore_options: tuple[str, ...]
    ) -> None:
        self._name = name
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._options = restore_options
        self._child = 0
        self._ended_by = 0  # the signal that ended this command

    def run(self, first: Work) -> int:
        """Run the guest to its end in one process after another; return its exit code.

        ``first`` starts it.
        """
        with (
            tempfile.TemporaryDirectory(prefix="pyvmm-migration-") as directory,
            handling(ENDING, self._end),
        ):
            migrations, stdin, work = 0, -1, first
            while True:
                target = Path(directory) / f"{migrations + 1}.snap"
                code, asked = self._run_once(work, target, stdin)
                if not asked or code != SAVED or self._ended_by or not target.exists():
                    return code
                migrations += 1
                work, stdin = self._restoring(target), _pipe_with(KEY)

    def _restoring(self, source: Path) -> Work:
        """Return the work of a process that restores the guest."""

        def restore(target: Path) -> int:
            words = ["restore", str(source), "--name", self._name, "--save-on-exit", str(target)]
            if self._deadline is not None:
                words += ["--timeout", f"{max(0.001, self._deadline - time.monotonic()):.3f}"]
            return cli.main([*words, *self._options], owns_process=True)

        return restore

    def _run_once(self, work: Work, target: Path, stdin: int) -> tuple[int, bool]:
        """Run the guest until it ends or prompts; return the exit code, and whether it prompted."""
        sys.stdout.flush()
        sys.stderr.flush()
        reading, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(reading)
            _be_guest(work, target, stdin, writing)
        os.close(writing)
        if stdin >= 0:
            os.close(stdin)
        asked, tail = False, b""
        while data := os.read(reading, CHUNK):
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            tail = (tail + data)[-CHUNK:]
            if not asked and any(prompt in tail for prompt in PROMPTS):
                asked = True
                os.kill(self._child, signal.SIGTERM)
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        self._child = 0
        return (status if status >= 0 else EXIT_SIGNAL - status), asked

    def _end(self, number: int, frame: object) -> None:
        """Pass a signal that ends this command on to the guest's process."""
        self._ended_by = number
        if self._child:
            os.kill(self._child, number)


def _be_guest(work: Work, target: Path, stdin: int, writing: int) -> None:
    """Run the guest in this forked process, and end it."""
    code = EXIT_FAILED
    try:
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        os.dup2(writing, 1)
        os.close(writing)
        if stdin >= 0:
            os.dup2(stdin, 0)
            os.close(stdin)
        code = work(target)
        sys.stdout.flush()
    except BaseException as error:
        code = cli.report(error)
    finally:
        os._exit(code)


def _pipe_with(data: bytes) -> int:
    """Return the end of a pipe that holds ``data`` and no more."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading
