"""Text of others on a terminal: nothing in it is obeyed, and none of it is endless."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.base.output import LONGEST, printable, printable_lines

COMMANDS = Path(__file__).parents[2] / "pyvmm" / "commands"
# Functions that print text of pyvmm alone, JSON, or the guest's console with click.echo.
PLAIN = {
    "_output.show", "_output.LiveTable.print_line", "man.man",
    "completion.completion", "version.version", "repro/__init__._run_matrix", "repro/__init__.show",
    "repro/__init__.run_capsule", "sve/check.show", "snapshot/show.show", "doctor.doctor",
    "_several._show", "_attached.Attached._on_key", "cpu/common.common",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text: é, 漢", "plain text: é, 漢"),
        ("\x1b[31mred\x1b]0;title\x07", "\\u001b[31mred\\u001b]0;title\\u0007"),
        ("a\x9b31mb\x7f", "a\\u009b31mb\\u007f"),  # C1: CSI in one character
        ("a\u202eb\u2066c\u200f", "a\\u202eb\\u2066c\\u200f"),  # right to left
        ("a\nb\rc\bd\te", "a\\u000ab\\u000dc\\u0008d\\u0009e"),
        ("a\ud800b", "a\\ud800b"),
        ("\U000e0041", "\\U000e0041"),  # a tag character
    ],
)
def test_printable_escapes_what_a_terminal_obeys(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_printable_cuts_long_text_and_says_how_long_it_was() -> None:
    assert printable("y" * LONGEST) == "y" * LONGEST
    assert printable("y" * 2_000_000) == "y" * LONGEST + "... (2000000 characters)"


def test_printable_lines_keeps_indented_lines_only() -> None:
    assert printable_lines("first\n  second\nFAKE") == "first\n  second\\u000aFAKE"


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_message_and_traceback_hold_no_escape_sequence(debug: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", *debug, "snapshot", "show", "/\x1b[31m\u202e" + "y" * 3000],
        capture_output=True,
        env={"PYTHONPATH": str(COMMANDS.parents[1]), "PYTHONUTF8": "1"},
    )

    assert done.returncode == 2
    assert b"\\u001b[31m" in done.stderr and b"\x1b" not in done.stderr
    assert b"\xe2\x80\xae" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) < LONGEST + 100


def test_commands_print_text_of_others_through_the_filter() -> None:
    """Find each call of click.echo; a new one belongs into PLAIN, or calls cli.echo."""
    found = set()
    for path in COMMANDS.rglob("*.py"):
        name = str(path.relative_to(COMMANDS).with_suffix(""))
        found |= {f"{name}.{where}" for where in callers(ast.parse(path.read_text()), "echo")}
    assert found == PLAIN


def callers(tree: ast.AST, called: str, where: str = "") -> set[str]:
    """Return the qualified names of functions that call ``click.<called>``."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        inside = where
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inside = f"{where}.{node.name}".lstrip(".")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"click.{called}":
            found.add(inside)
        found |= callers(node, called, inside)
    return found
