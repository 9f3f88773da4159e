"""Translated addresses and page tables as text, for ``pyvmm debug`` and ``pyvmm snapshot show``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from pyvmm.base.output import printable
from pyvmm.base.units import parse_number, show_size
from pyvmm.commands._options import EXISTING_FILE, added
from pyvmm.debugger.disassembly import Code, disassemble
from pyvmm.debugger.symbols import Known, Names, shown

MOST_RANGES = 100_000  # shown: tables with loops map the whole address space in small pages
MOST_REQUESTS = 256
LIMIT = 1 << 64
CALL = 4  # bytes of the instruction before a return address

Reply = dict[str, Any]


def _address(text: str) -> int:
    return parse_number(text, "an address") % LIMIT


symbols_option = click.option(
    "--symbols", type=EXISTING_FILE, metavar="FILE",
    help="Name addresses by an ELF file's symbols (an image, vmlinux), or a System.map.",
)  # fmt: skip
kallsyms_option = click.option(
    "--kallsyms", is_flag=True,
    help="Name addresses by the symbol table in a Linux guest's memory, since Linux 6.0.",
)  # fmt: skip
backtrace_option = click.option(
    "--backtrace", is_flag=True,
    help="Show the vCPUs' calls, by their frame records, and the instructions around PC.",
)  # fmt: skip
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
    backtraces: Mapping[str, Sequence[str]],
    codes: Mapping[str, Mapping[str, str]],
    names: Names | None,
) -> Iterator[str]:
    """Yield the calls of each vCPU, the newest first, and the instructions around its PC."""
    for vcpu, addresses in backtraces.items():
        yield f"vCPU {vcpu}:"
        for number, text in enumerate(addresses):
            name = "" if names is None else _name(names, int(text, 16), is_return=number > 0)
            yield f"  #{number:<2} {text:>18}  {name}".rstrip()
        if vcpu in codes:
            yield from _code_lines(Code.from_json(codes[vcpu]))


def _name(names: Names, address: int, *, is_return: bool) -> str:
    """Return the name of an address; a return address belongs to the function that has the call.

    A call that does not return may be a function's last instruction.
    """
    name = names.name(_site(address) if is_return else address)
    if not is_return or not name:
        return name
    symbol, plus, offset = name.rpartition("+0x")
    return shown(symbol, int(offset, 16) + CALL) if plus else shown(name, CALL)


def _code_lines(code: Code) -> Iterator[str]:
    for address, word, text in disassemble(code):
        mark = "=>" if address == code.pc else ""
        yield f"  {mark:2}  {address:#18x}  {word:08x}  {text}".rstrip()


def addresses_in(reply: Reply) -> list[int]:
    """Return the code addresses in a reply with call chains or with registers."""
    chains = reply.get("backtraces", {}).values()
    pcs = [vcpu["registers"]["PC"] for vcpu in reply.get("vcpus", ())]
    return [int(pc, 16) for pc in pcs] + named_in(chains)


def named_in(chains: Iterable[Sequence[str]]) -> list[int]:
    """Return the addresses that name the calls in chains."""
    numbers = [[int(text, 16) for text in chain] for chain in chains]
    return [_site(at) if n else at for chain in numbers for n, at in enumerate(chain)]


def _site(address: int) -> int:
    """Return the address of the call that returns to an address."""
    return (address - CALL) % LIMIT


def known(reply: Reply) -> Names | None:
    """Return the names in a reply; a guest chooses their text."""
    found = {int(address, 16): printable(name) for address, name in reply.get("names", {}).items()}
    return Known(found) if found else None


def _access(found: Reply) -> Iterator[str]:
    """Yield the permissions and the memory type."""
    yield f"EL1 {found['el1']}"
    yield f"EL0 {found['el0']}"
    yield found["memory"]
    if not found.get("is_global", True):
        yield "non-global"
