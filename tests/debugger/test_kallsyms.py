"""A Linux guest's own symbol table, also a hostile one; tests/guests has a real kernel's."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.debugger.corefile import Piece
from pyvmm.debugger.kallsyms import find_names
from tests.debugger.client import BASE, SIZE, MadeUp

WHOLE = [Piece(BASE, SIZE, [(BASE, BASE + SIZE)])]
INFO, NUM, RELATIVE, OFFSETS, INDEX, TABLE, NAMES = (BASE + n * 0x1000 for n in range(1, 8))
KERNEL = 0xFFFF_8000_0800_0000  # kallsyms_relative_base
LONG = "long_" + "x" * 200
SYMBOLS = ((0, "T_text"), (0x1000, "Tstart_kernel"), (0x1000, "talias"), (0x2000, f"t{LONG}"),
           (0x9000, "Dlinux_banner"))  # fmt: skip


def table(machine: MadeUp, symbols: Sequence[tuple[int, str]] = SYMBOLS) -> None:
    """Write a symbol table as scripts/kallsyms.c does; each token is a character."""
    places = {"num_syms": NUM, "relative_base": RELATIVE, "offsets": OFFSETS, "token_index": INDEX,
              "token_table": TABLE, "names": NAMES}  # fmt: skip
    lines = [f"SYMBOL(kallsyms_{name})={place:x}" for name, place in places.items()]
    put(machine, INFO, "\n".join(["OSRELEASE=6.1", "PAGESIZE=4096", *lines, ""]).encode())
    put(machine, NUM, struct.pack("<I", len(symbols)))
    put(machine, RELATIVE, struct.pack("<Q", KERNEL))
    put(machine, OFFSETS, struct.pack(f"<{len(symbols)}I", *(offset for offset, _ in symbols)))
    put(machine, INDEX, struct.pack("<256H", *range(0, 512, 2)))
    put(machine, TABLE, b"".join(bytes((max(1, token), 0)) for token in range(256)))
    encoded = (name.encode() for _, name in symbols)
    put(machine, NAMES, b"".join(length(len(name)) + name for name in encoded))


def length(number: int) -> bytes:
    return bytes((number & 0x7F | 0x80, number >> 7)) if number > 0x7F else bytes((number,))


def put(machine: MadeUp, place: int, data: bytes) -> None:
    machine.memory[place - BASE : place - BASE + len(data)] = data


def names(machine: MadeUp, *offsets: int) -> list[str | None]:
    found = find_names(
        WHOLE, machine.read_physical, machine.cpus, [KERNEL + offset for offset in offsets]
    )
    return [found.get(KERNEL + offset) for offset in offsets]


def test_addresses_have_the_names_of_the_guests_table() -> None:
    machine = MadeUp()
    table(machine)

    found = names(machine, 0x101C, 0, 0x2000, 0x9004, 0x1000, -4, 1 << 30)

    assert found == ["start_kernel+0x1c", "_text", LONG, "linux_banner+0x4", "start_kernel",
                     None, None]  # fmt: skip


def test_guest_without_a_table_has_no_names() -> None:
    machine = MadeUp()

    assert names(machine, 0) == [None]
    put(machine, INFO, b"OSRELEASE=5.10\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffff800009e1c4c0\n")
    assert names(machine, 0) == [None]


def test_name_is_printed_without_control_characters() -> None:
    machine = MadeUp()
    table(machine, [(0, "T\x1b[2Jgone")])

    assert names(machine, 0) == [r"\u001b[2Jgone"]


@pytest.mark.parametrize("count", [0, (1 << 20) + 1, 0xFFFF_FFFF])
def test_wrong_count_of_symbols_gives_no_names(count: int) -> None:
    machine = MadeUp()
    table(machine)
    put(machine, NUM, struct.pack("<I", count))

    assert names(machine, 0) == [None]


@given(st.lists(st.tuples(st.sampled_from((NUM, OFFSETS, INDEX, TABLE, NAMES)),
                          st.binary(min_size=1, max_size=64)), max_size=4))  # fmt: skip
def test_any_bytes_in_the_table_give_names_or_none(written: list[tuple[int, bytes]]) -> None:
    machine = MadeUp()
    table(machine)
    for place, data in written:
        put(machine, place, data)

    for name in names(machine, 0, 0x101C, 0x9004):
        assert name is None or name.isprintable()
