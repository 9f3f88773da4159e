"""The manual page: every command and option is on it, and mandoc accepts it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import click
import pytest

from pyvmm import cli
from pyvmm.commands.man import _text, page
from tests.conftest import tool


@pytest.fixture(scope="module")
def source() -> str:
    return "\n".join(page()) + "\n"


@pytest.fixture(scope="module")
def shown(source: str) -> str:
    """Return the page as man shows it."""
    done = subprocess.run(
        [tool("mandoc"), "-T", "utf8", "-O", "width=100"],
        input=source, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.sub(".\b", "", done.stdout)  # bold characters are struck twice


def commands(parent: click.Context) -> Iterator[click.Context]:
    assert isinstance(parent.command, click.Group)
    for name in parent.command.list_commands(parent):
        command = parent.command.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent)
        yield context
        if isinstance(command, click.Group):
            yield from commands(context)


def test_mandoc_finds_nothing_wrong(source: str) -> None:
    done = subprocess.run(
        [tool("mandoc"), "-T", "lint", "-W", "warning"],
        input=source, capture_output=True, text=True,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "")


def test_page_has_every_command_and_option(shown: str) -> None:
    for context in commands(click.Context(cli.pyvmm, info_name="pyvmm")):
        assert f"\n   {context.command_path}\n" in shown
        _, _, section = shown.partition(f"\n   {context.command_path}\n")
        for param in context.command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert param.opts[-1] in section


@pytest.mark.parametrize("text", [".so /etc/passwd", "'tis", "back\\slash", "a-b --c-d"])
def test_man_shows_special_text_unchanged(text: str) -> None:
    source = "\n".join([".TH X 1 2026-01-01", ".SH NAME", "x \\- y", ".SH TEXT", *_text(text), ""])

    done = subprocess.run(
        [tool("mandoc"), "-T", "ascii"], input=source, capture_output=True, text=True, check=True
    )

    assert text in done.stdout


def test_page_has_the_date_of_a_reproducible_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")

    assert '.TH PYVMM 1 "1970-01-02"' in next(page())


def test_command_prints_the_page(capsys: pytest.CaptureFixture[str], source: str) -> None:
    assert cli.main(["man"]) == 0
    assert capsys.readouterr().out == source
