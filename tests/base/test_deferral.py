"""The import of click without modules that it rarely uses."""

from __future__ import annotations

import gettext
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from pyvmm import cli
from pyvmm.base import deferral
from pyvmm.base.deferral import DEFERRED, one_line_cleandoc

# From Python 3.14 on, NamedTuple needs annotationlib, which imports ast.
WITH_INSPECT = ("dis", "tokenize", *(("ast",) if sys.version_info < (3, 14) else ()))
DRIVER = """
import json, sys
from pyvmm import cli
import click
command = cli.pyvmm.get_command(click.Context(cli.pyvmm), "run")
context = command.make_context("run", ["-c", "2", "--mem", "64", "--rng", "image"])
loaded = sorted(sys.modules)
import datetime, inspect, uuid
print(json.dumps({
    "loaded": loaded,
    "params": {name: str(value) for name, value in context.params.items()},
    "real": [inspect.cleandoc.__module__, uuid.UUID(int=1).hex, str(datetime.date(2026, 1, 2))],
    "of click": [click.core.inspect.isfunction(print), click.types.uuid.UUID(int=2).hex],
}))
"""


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    answers: dict[str, object] = json.loads(run("-c", DRIVER))
    return answers


def test_click_reads_a_command_line_without_the_modules(found: dict[str, object]) -> None:
    assert not {*DEFERRED, *WITH_INSPECT} & set(found["loaded"])  # type: ignore[call-overload]  # JSON
    context = click.Context(cli.pyvmm)
    command = cli.pyvmm.get_command(context, "run")
    assert command is not None
    expected = command.make_context("run", ["-c", "2", "--mem", "64", "--rng", "image"]).params
    assert found["params"] == {name: str(value) for name, value in expected.items()}


def test_other_modules_get_the_real_ones_later(found: dict[str, object]) -> None:
    assert found["real"] == ["inspect", f"{1:032x}", "2026-01-02"]


def test_click_gets_the_real_ones_when_it_uses_them(found: dict[str, object]) -> None:
    assert found["of click"] == [False, f"{2:032x}"]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["snapshot", "--help"]])
def test_help_is_the_same_without_stand_ins(words: list[str]) -> None:
    modules = ", ".join(DEFERRED)
    plain = f"import sys, {modules}; from pyvmm import cli; sys.exit(cli.main())"

    assert run("-m", "pyvmm", *words) == run("-c", plain, *words)


def parameters(group: click.Group, context: click.Context) -> Iterator[click.Parameter]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from command.params
        if isinstance(command, click.Group):
            yield from parameters(command, click.Context(command, parent=context))


def test_commands_have_no_option_of_a_type_that_needs_a_stand_in() -> None:
    found = list(parameters(cli.pyvmm, click.Context(cli.pyvmm)))

    assert len(found) > 100
    assert not [p for p in found if isinstance(p.type, click.DateTime)]


@pytest.mark.parametrize("text", ["", "Give it.", "  two\twords ", "a\n    b\n\n", "\n  x\n   y"])
def test_cleandoc_is_that_of_inspect(text: str) -> None:
    assert one_line_cleandoc(text) == inspect.cleandoc(text)


@pytest.mark.parametrize("value", [parameters, "".upper, print, len, cli.Verb, 1, None])
def test_isfunction_is_that_of_inspect(value: object) -> None:
    assert deferral.isfunction(value) == inspect.isfunction(value)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_messages_are_those_of_gettext_without_translations(number: int) -> None:
    real = gettext.NullTranslations()

    assert deferral.untranslated("Usage:") == real.gettext("Usage:")
    found = deferral.untranslated_number("a file", "files", number)
    assert found == real.ngettext("a file", "files", number)


PATHS = """
import sys
sys.path += {path!r}
from pyvmm.base.deferral import import_pathlib
import_pathlib()
from pathlib import Path
print("urllib.parse" in sys.modules)
print(Path("/a b").as_uri())
import urllib.parse
print(urllib.parse.urlsplit("http://x/y").path)
"""


def test_pathlib_comes_without_urllib_and_finds_it_when_it_is_used() -> None:
    # -S: the finder of an editable installation imports pathlib before
    assert run("-IS", "-c", PATHS.format(path=sys.path)).split() == ["False", "file:///a%20b", "/y"]


GUESSES = """
import sys
from pyvmm import cli
import click
command = cli.pyvmm.get_command(click.Context(cli.pyvmm), "run")
command.make_context("run", ["-c", "2", "-m", "64", "image"])
print("difflib" in sys.modules)
"""


def test_short_options_are_read_without_difflib() -> None:
    assert run("-c", GUESSES) == "False\n"


@pytest.mark.parametrize("loaded", [True, False])
def test_mistyped_long_option_gets_the_guess_of_click(loaded: bool) -> None:
    code = "import difflib; " if loaded else ""
    code += (
        "import sys; from pyvmm import cli; sys.exit(cli.main(['run', '-c', '1', '--cpsu', '2']))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 2
    assert "--cpus" in done.stderr.splitlines()[0]


def test_loaded_modules_are_not_replaced() -> None:
    import datetime

    with deferral.rarely_used_modules_deferred():
        assert sys.modules["inspect"] is inspect
        assert sys.modules["datetime"] is datetime
