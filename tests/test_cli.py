"""The command line: verbs, error messages and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import pyvmm
from pyvmm import cli
from pyvmm.errors import (
    GuestError,
    HostError,
    ImageError,
    KvmError,
    TimeoutExpired,
    UsageError,
    VmmError,
)

Verb = Callable[[BaseException], None]


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Return a function that makes `pyvmm doctor` end with an error."""

    def install(error: BaseException) -> None:
        @click.command()
        def doctor() -> None:
            raise error

        monkeypatch.setattr("pyvmm.commands.doctor.doctor", doctor)

    return install


def test_help_has_the_words_kvm_unit_tests_looks_for(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["--help"])

    assert code == 0
    assert "The most commonly used" in capsys.readouterr().out


def test_help_lists_every_verb_with_its_own_first_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main(["--help"])
    shown = capsys.readouterr().out

    for name, verb in cli.VERBS.items():
        command = cli.pyvmm.get_command(click.Context(cli.pyvmm), name)
        assert command is not None
        assert command.get_short_help_str(80) == verb.summary
        assert f"{name} " in shown


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_version_prints_the_packages_version(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(arguments)

    assert code == 0
    assert capsys.readouterr().out == f"pyvmm {pyvmm.__version__}\n"


def test_python_m_pyvmm_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", "-c", "0", "image"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyvmm: -c 0")


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(pyvmm.__file__).parents[1] / "pyproject.toml").read_text())

    assert project["project"].get("version", pyvmm.__version__) == pyvmm.__version__


def test_command_without_a_verb_shows_the_help_and_exits_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = cli.main([])

    assert code == 2
    assert "The most commonly used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reboot"], "No such command 'reboot'"),
        (["run", "--color"], "--color"),
        (["run", "-c"], "requires an argument"),
        (["run", "-c", "many", "x"], "'many' is not a valid integer"),
    ],
)
def test_mistyped_command_line_gets_one_message_and_a_hint(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(arguments)
    message, hint, *rest = capsys.readouterr().err.splitlines()

    assert code == 2
    assert message.startswith("pyvmm: ")
    assert words in message
    assert hint.startswith("  hint: ")
    assert rest == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VmmError("broken"), 1),
        (GuestError("broken"), 1),
        (UsageError("broken"), 2),
        (ImageError("broken"), 2),
        (HostError("broken"), 3),
        (KvmError("KVM_RUN", "broken", 22), 3),
        (TimeoutExpired("broken"), 124),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(32, "Broken pipe"), 141),
        (SystemExit(7), 7),
        (ZeroDivisionError("broken"), 1),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(
    error: BaseException, code: int, failing: Verb, capfd: pytest.CaptureFixture[str]
) -> None:
    failing(error)

    assert cli.main(["doctor"]) == code
    assert "Traceback" not in capfd.readouterr().err


def test_closed_pipe_of_standard_output_is_no_error() -> None:
    code = "import sys; from pyvmm.cli import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writer)

    assert done.stderr == ""
    assert done.returncode in (1, 141)  # --help is click's, which exits with 1


def test_error_has_its_message_and_hint(failing: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    failing(HostError("no KVM here", hint="go elsewhere"))

    cli.main(["doctor"])

    assert capsys.readouterr().err == "pyvmm: no KVM here\n  hint: go elsewhere\n"


def test_missing_file_of_the_package_is_no_bug(
    failing: Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(FileNotFoundError(2, "No such file", str(Path(cli.__file__).with_name("none.c"))))

    assert cli.main(["doctor"]) == 3
    message, hint = capsys.readouterr().err.splitlines()
    assert message.endswith(" lacks none.c: No such file")
    assert hint == "  hint: install pyvmm again"


def test_unexpected_error_is_owned_up_to(failing: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    failing(ZeroDivisionError("division by zero"))

    cli.main(["doctor"])
    message, hint = capsys.readouterr().err.splitlines()

    assert message == "pyvmm: unexpected ZeroDivisionError: division by zero"
    assert "a bug in pyvmm" in hint
    assert "--debug" in hint


def test_debug_shows_the_traceback(failing: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    failing(HostError("no KVM here"))

    code = cli.main(["--debug", "doctor"])

    assert code == 3
    assert "Traceback" in capsys.readouterr().err


def test_finding_a_verb_imports_no_other_verb() -> None:
    done = fresh(
        "import sys; from pyvmm.cli import main; main(['version']);"
        "print(sorted(m for m in sys.modules if m.startswith('pyvmm.')))"
    )

    assert done.stdout.splitlines()[1] == (
        "['pyvmm.base', 'pyvmm.base.deferral', 'pyvmm.base.output', 'pyvmm.base.records', "
        "'pyvmm.cli', 'pyvmm.commands', 'pyvmm.commands.version', 'pyvmm.errors']"
    )


def test_run_imports_no_module_that_it_does_not_need() -> None:
    done = fresh(
        "import sys; from pyvmm.cli import main; main(['run', '-c', '0', 'x']);"
        "print([m for m in ('rich', 'elftools', 'importlib.metadata', 'asyncio', 'cffi')"
        " if m in sys.modules])"
    )

    assert done.stdout == "[]\n"


def test_elf_is_loaded_without_pyelftools() -> None:
    done = fresh("import sys, pyvmm.boot.elf; print('elftools' in sys.modules)")

    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", pyvmm.__all__)
def test_library_exports_every_name_in_all(name: str) -> None:
    assert getattr(pyvmm, name).__name__ == name


def test_library_exports_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Hypervisor'"):
        _ = pyvmm.Hypervisor


def test_other_files_do_not_take_closed_standard_streams() -> None:
    done = fresh(
        "import os, sys; from pyvmm.cli import _keep_standard_descriptors as keep\n"
        "os.close(0); os.close(1); keep(); opened = os.open('/dev/zero', os.O_RDONLY)\n"
        "sys.stderr.write(str([os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1)]))\n"
        "sys.stderr.write(str(opened > 2)); sys.stderr.flush(); os._exit(0)"
    )

    assert done.stderr == "['/dev/null', '/dev/null']True"
