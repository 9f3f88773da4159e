"""Translated addresses and page tables as text, for ``pyvmm debug`` and ``pyvmm snapshot show``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from pyvmm.base.units import parse_number, show_size
from pyvmm.commands._options import EXISTING_FILE, added
from pyvmm.debugger.symbols import Symbols

MOST_RANGES = 100_000  # shown: tables with loops map the whole address space in small pages
MOST_REQUESTS = 256
LIMIT = 1 << 64

Reply = dict[str, Any]


def _address(text: str) -> int:
    return parse_number(text, "an address") % LIMIT


symbols_option = click.option(
    "--symbols", type=EXISTING_FILE, metavar="FILE",
    help="Name addresses by an ELF file's symbols (an image, vmlinux), or a System.map.",
)  # fmt: skip
backtrace_option = click.option(
    "--backtrace", is_flag=True, help="Show the vCPUs' calls, by their frame records."
)
address_options = added(
    click.option(
        "--translate", type=_address, metavar="ADDR",
        help="Translate the virtual address ADDR by the vCPU's page tables.",
    ),
    click.option(
        "--page-tables", is_flag=True,
        help="Show the address ranges that the vCPU's page tables map, with their attributes.",
    ),
)  # fmt: skip


def whole_tables(ask: Callable[[int], Reply]) -> Reply:
    """Return all of a vCPU's page tables; ``ask`` returns the ranges from an address on.

    "is_complete" is false if the tables have more ranges than are shown. Stops at a failure, which
    is the reply.
    """
    reply = ask(0)
    for _ in range(MOST_REQUESTS):
        if not reply.get("ok", True) or reply["next"] is None or len(reply["ranges"]) > MOST_RANGES:
            break
        more = ask(reply["next"])
        if not more.get("ok", True):
            return more
        counted = reply["unreadable_tables"] + more["unreadable_tables"]
        ranges = reply["ranges"] + more["ranges"]
        reply = {**more, "ranges": ranges, "unreadable_tables": counted}
    if reply.get("ok", True):
        reply["is_complete"] = reply.pop("next") is None
    return reply


def translation_lines(reply: Reply) -> Iterator[str]:
    """Yield the line about a translated address."""
    how = "by the page tables" if reply["mmu"] else "the MMU is off"
    words = [f"{show_size(reply['page'])} page", *_access(reply)] if "page" in reply else []
    place = f"{reply['virtual']} is at physical address {reply['address']}"
    yield ", ".join([place, how, *words])


def table_lines(reply: Reply) -> Iterator[str]:
    """Yield a line about each range, and one about what is not shown."""
    if not reply["mmu"]:
        yield "the MMU is off: virtual addresses are physical"
        return
    for found in reply["ranges"]:
        place = f"{found['start']}-{found['end']}  {found['address']:>14}"
        yield "  ".join([place, f"{show_size(found['page']):>7}", *_access(found)])
    if not reply["ranges"]:
        yield "the page tables map nothing"
    if reply["unreadable_tables"]:
        yield f"tables outside memory: {reply['unreadable_tables']}"
    if not reply["is_complete"]:
        yield "more is mapped: the tables may contain loops"


def backtrace_lines(
    backtraces: Mapping[str, Sequence[str]], names: Symbols | None
) -> Iterator[str]:
    """Yield the calls of each vCPU, the newest first."""
    for vcpu, addresses in backtraces.items():
        yield f"vCPU {vcpu}:"
        for number, text in enumerate(addresses):
            name = names.name(int(text, 16)) if names is not None else ""
            yield f"  #{number:<2} {text:>18}  {name}".rstrip()


def _access(found: Reply) -> Iterator[str]:
    """Yield the permissions and the memory type."""
    yield f"EL1 {found['el1']}"
    yield f"EL0 {found['el0']}"
    yield found["memory"]
    if not found.get("is_global", True):
        yield "non-global"
