"""Names of a Linux guest's addresses, from the symbol table that the kernel keeps in its memory.

VMCOREINFO says where the table is, so KASLR does not matter. Everything is data that the guest
controls: what is read is bounded, and a name may be any text.

    kallsyms_offsets        u32 per symbol, ascending, from kallsyms_relative_base on
    kallsyms_names          per symbol: a length (1 or 2 bytes), and that many tokens of a byte
    kallsyms_token_index    u16 per token: where it is in kallsyms_token_table, a text with a 0 byte

A name's first character is the symbol's type.

Source: Linux, scripts/kallsyms.c and kernel/kallsyms.c; VMCOREINFO has the table's parts since
v6.0, commit 5fd8fea935a1 ("vmcoreinfo: include kallsyms symbols").
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from pyvmm.arm64.translation import Read
from pyvmm.base.output import printable
from pyvmm.debugger.addresses import Cpu, pieces, regime_of
from pyvmm.debugger.corefile import Piece, find_vmcoreinfo
from pyvmm.debugger.symbols import FARTHEST, shown
from pyvmm.errors import VmmError

MOST_SYMBOLS: Final = 1 << 20  # Debian's kernel has 140,000
MOST_ADDRESSES: Final = 4096  # named at once
LONGEST: Final = 512  # characters of a name: KSYM_NAME_LEN
TOKENS: Final = 256
LONGEST_TOKEN: Final = 64  # bytes that are read of the last token
CHUNK: Final = 64 << 10
_SYMBOL: Final = re.compile(rb"^SYMBOL\(kallsyms_(\w+)\)=([0-9a-f]{1,16})$", re.MULTILINE)
_MORE: Final = 0x80  # of a length's first byte: a second one follows

ReadVirtual = Callable[[int, int], bytes]


def find_names(
    memory: Sequence[Piece], read: Read, cpus: Iterable[Cpu], addresses: Iterable[int]
) -> dict[int, str]:
    """Return the names of addresses that a Linux guest's kallsyms has; none without a table.

    ``read`` reads guest memory by physical address. The kernel's page tables are those of the first
    vCPU that maps the table.
    """
    wanted = sorted(set(addresses))[:MOST_ADDRESSES]
    info = find_vmcoreinfo(memory, read)
    places = {name.decode(): int(value, 16) for name, value in _SYMBOL.findall(info)}
    for cpu in cpus if places and wanted else ():
        try:
            return dict(_names(places, _virtual(cpu, read), wanted))
        except (VmmError, LookupError, ValueError, struct.error):  # at EL0, or no valid table
            continue
    return {}


def _virtual(cpu: Cpu, read: Read) -> ReadVirtual:
    """Return a function that reads up to the first byte that is not mapped, but at least one."""
    regime = regime_of(cpu)

    def read_virtual(va: int, length: int) -> bytes:
        found = bytearray()
        try:
            for gpa, size in pieces(regime, read, va, length):
                found += read(gpa, size)
        except VmmError:
            if not found:
                raise
        return bytes(found)

    return read_virtual


def _names(
    places: dict[str, int], read: ReadVirtual, wanted: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Yield addresses with their names.  Raises: LookupError, ValueError, VmmError."""
    (count,) = struct.unpack("<I", read(places["num_syms"], 4))
    if not 0 < count <= MOST_SYMBOLS:
        raise ValueError(count)
    (base,) = struct.unpack("<Q", read(places["relative_base"], 8))
    offsets = array("I", read(places["offsets"], 4 * count))
    index = struct.unpack(f"<{TOKENS}H", read(places["token_index"], 2 * TOKENS))
    table = read(places["token_table"], index[-1] + LONGEST_TOKEN)
    tokens = [table[at:].partition(b"\0")[0] for at in index]
    found = {address: _symbol(offsets, address - base) for address in wanted}
    numbers = {number for number in found.values() if number is not None}
    names: dict[int, bytes] = {}
    for number, entry in enumerate(_entries(read, places["names"], max(numbers, default=-1) + 1)):
        if number in numbers:
            names[number] = b"".join(tokens[token] for token in entry)[1:]
    for address, symbol in found.items():
        if symbol is not None:
            name = printable(names[symbol][:LONGEST].decode("ascii", "replace"))
            yield address, shown(name, address - base - offsets[symbol])


def _symbol(offsets: array[int], offset: int) -> int | None:
    """Return the number of the symbol at or before an offset, the first of several there."""
    at = bisect_right(offsets, offset) - 1
    if at < 0 or offset - offsets[at] > FARTHEST:
        return None
    while at > 0 and offsets[at - 1] == offsets[at]:
        at -= 1
    return at


def _entries(read: ReadVirtual, start: int, count: int) -> Iterator[bytes]:
    """Yield the tokens of the first names."""
    data, at = b"", 0
    for _ in range(count):
        while len(data) < at + 2 or len(data) < at + 2 + _length(data, at):
            data, at, start = data[at:] + read(start, CHUNK), 0, start + CHUNK
        length = _length(data, at)
        at += 2 if data[at] & _MORE else 1
        yield data[at : at + length]
        at += length


def _length(data: bytes, at: int) -> int:
    first = data[at]
    return first & ~_MORE | data[at + 1] << 7 if first & _MORE else first
