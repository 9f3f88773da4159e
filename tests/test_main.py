"""The end of the ``pyvmm`` process: its exit code, and what happens before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

LATE = """
import atexit, threading, time
from pyvmm import cli, __main__

def slow():
    time.sleep(0.2)
    print("thread", flush=True)

def main(**_):
    threading.Thread(target=slow).start()
    atexit.register(print, "atexit")
    print("main", end=" ")
    return 7

cli.main = main
__main__.entry()
"""
DEL = """
from pyvmm import cli, __main__

class Noisy:
    def __del__(self):
        print("freed")

kept = Noisy()
cli.main = lambda **_: 0
__main__.entry()
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def test_process_ends_after_threads_and_atexit_functions_with_the_code_of_main() -> None:
    done = run("-c", LATE)

    assert done.stdout.split() == ["main", "thread", "atexit"]
    assert done.stderr == ""
    assert done.returncode == 7


def test_process_ends_without_freeing_its_objects() -> None:
    done = run("-c", DEL)

    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["run"], 2), (["--help"], 0)])
def test_command_has_all_of_its_output_and_its_code(words: list[str], code: int) -> None:
    done = run("-m", "pyvmm", *words)

    assert done.returncode == code
    assert (done.stderr if code else done.stdout).endswith("\n")


def test_error_of_main_is_shown() -> None:
    done = run(
        "-c", "from pyvmm import cli, __main__; cli.main = lambda **_: 1 / 0; __main__.entry()"
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_output_that_cannot_be_written_is_an_error() -> None:
    code = (
        "from pyvmm import cli, __main__; cli.main = lambda **_: print('x') or 0; __main__.entry()"
    )
    command = [sys.executable, "-E", "-c", code]  # without PYTHONUNBUFFERED
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)

    assert done.returncode == 120  # Python's
    assert b"No space left on device" in done.stderr


@pytest.mark.parametrize("lost", [["stderr"], ["stdout", "stderr"]], ids="-".join)
def test_exit_code_stays_if_stderr_cannot_be_written(lost: list[str]) -> None:
    command = [sys.executable, "-m", "pyvmm", "snapshot", "show", "/no/such/file"]
    with Path("/dev/full").open("wb") as full:
        streams: dict[str, Any] = dict.fromkeys(lost, full)
        done = subprocess.run(command, **streams, cwd=ROOT)

    assert done.returncode == 2
