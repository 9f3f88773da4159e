"""Fields in errors, spelled as the options that set them."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from pyvmm import cli
from pyvmm.commands._fields import OPTIONS, option, spell
from pyvmm.errors import UsageError
from pyvmm.repro import cases

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("`vcpus`=9: too many", "-c 9: too many"),
        ("use `sve.vls`=128 or `sve.vls`=128,256", "use --sve-vls=128 or --sve-vls=128,256"),
        ("`sve.vls` and `sve.max_vl`", "--sve-vls and --sve-max-vl"),
        ("`force`=True restores it", "--force restores it"),
        ("`ram_base`=0x10: low", "-m SIZE@0x10: low"),
        ("`host.append`='x': not words", "--host-append 'x': not words"),
    ],
)
def test_spell_puts_options_in_place_of_fields(text: str, spelled: str) -> None:
    assert spell(text) == spelled


@pytest.mark.parametrize("text", ["`pyvmm list` shows it", "`hwclock`", "`vcpus", "vcpus=1"])
def test_spell_leaves_other_words_as_they_are(text: str) -> None:
    assert spell(text) == text


def test_report_shows_options_in_message_and_hint(capsys: Capture) -> None:
    cli.report(UsageError("`memory`=0: a machine needs memory", hint="use `memory`=64M"))

    assert capsys.readouterr().err == ("pyvmm: -m 0: a machine needs memory\n  hint: use -m 64M\n")


def options_of(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield every option of a command and of the commands below it."""
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options_of(below, click.Context(below, parent=context))


def test_every_field_has_an_option_of_a_command() -> None:
    known = set(options_of(cli.pyvmm, click.Context(cli.pyvmm)))

    unknown = {field for field in OPTIONS if option(field).split()[0] not in known}

    assert not unknown


def test_every_option_of_a_reproduction_has_a_field() -> None:
    names = {o.name for case in cases.all_cases().values() for o in case.options}

    assert not {name for name in names if name.replace("-", "_") not in OPTIONS}
