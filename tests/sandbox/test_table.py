"""The table of system calls, and its copy for people."""

from __future__ import annotations

from pathlib import Path

from pyvmm.sandbox.table import TABLE

PAGE = Path(__file__).resolve().parents[2] / "docs/security.md"


def test_page_shows_the_table() -> None:
    rows = [f"| {row.threads} | {row.calls} | {row.why} |" for row in TABLE]

    section = PAGE.read_text(encoding="utf-8").partition("### System calls")[2]
    table = section.partition("\n## ")[0].splitlines()
    shown = [line for line in table if line.startswith("|")]

    assert shown == ["| threads | system calls | why |", "|---|---|---|", *rows]


def test_call_is_in_one_row_unless_its_arguments_differ() -> None:
    calls = [call for row in TABLE for call in row.calls.split() if call != "ioctl"]

    assert len(calls) == len(set(calls))
    assert all(row.when for row in TABLE if "ioctl" in row.calls.split())
