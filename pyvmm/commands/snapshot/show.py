"""``pyvmm snapshot show``: the contents of a snapshot, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click

from pyvmm.arm64 import vl
from pyvmm.base.units import parse_number, parse_size, show_size
from pyvmm.cli import echo
from pyvmm.commands import _output as output
from pyvmm.commands._options import json_option, trust_option
from pyvmm.commands._output import counted
from pyvmm.commands.registers.addresses import (
    address_options,
    backtrace_lines,
    backtrace_option,
    kallsyms_option,
    named_in,
    symbols_option,
    table_lines,
    translation_lines,
    whole_tables,
)
from pyvmm.commands.registers.show import PARTS, show_matching, show_registers
from pyvmm.debugger import addresses
from pyvmm.debugger.backtrace import call_chain
from pyvmm.debugger.saved import pieces_of, read_memory
from pyvmm.debugger.symbols import Known, Names, Symbols
from pyvmm.errors import UsageError
from pyvmm.machine.registerdump import VcpuRegisters
from pyvmm.snapshot.format import PAGE
from pyvmm.snapshot.gic import CPU
from pyvmm.snapshot.snapshot import GICV2, GicPart, Snapshot
from pyvmm.snapshot.trust import Outside, outside, parents

NamesOf = Callable[[Sequence[int]], Names | None]

SCHEMA = 1
ROW = 16  # bytes in a line of memory
MOST_MEMORY = 64 << 20  # bytes shown at once
MOST_KEYS = 100  # of a device's state that are shown
WIDE = 60  # columns of a device's value


def _where(text: str) -> tuple[int, int]:
    """Read ADDR,LEN: an address of guest memory, and a number of bytes."""
    address, comma, length = text.partition(",")
    if not comma:
        raise UsageError(f"--memory {text}: not ADDR,LEN", hint="write 0x80000000,64 or 4K")
    where = (parse_number(address, "an address"), _length(length))
    if not 0 < where[1] <= MOST_MEMORY:
        raise UsageError(f"--memory {text}: 1 byte to {show_size(MOST_MEMORY)} can be shown")
    return where


def _length(text: str) -> int:
    """Read a number of bytes, or a size with a suffix."""
    if text[-1:].isalpha() and not text.lower().startswith("0x"):
        return parse_size(text)
    return parse_number(text, "a length")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--vcpu", type=int, metavar="N", help="Only that vCPU.")
@click.option("--part", type=click.Choice(PARTS), default="all", help="Which registers to show.")
@click.option(
    "--regs", metavar="PATTERN",
    help="Only registers whose names match: 'Z*', 'ESR_EL1,FAR_EL1', '*_EL1'.",
)  # fmt: skip
@click.option(
    "--whole", is_flag=True, help="Show Z, P and FFR at the vCPU's longest vector length."
)
@click.option(
    "--memory", type=_where, metavar="ADDR,LEN", help="Only guest memory, LEN bytes at ADDR."
)
@backtrace_option
@symbols_option
@kallsyms_option
@address_options
@trust_option
@json_option
def show(
    file: Path, vcpu: int | None, part: str, regs: str | None, whole: bool,
    memory: tuple[int, int] | None, translate: int | None, page_tables: bool, backtrace: bool,
    symbols: Path | None, kallsyms: bool, trust: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show the contents of a snapshot.

    Show where it was taken, the files outside it that a restore opens, the machine, its memory map,
    devices and interrupt controller, and every register of each vCPU, with Arm's names and fields.
    State and memory are checked before they are shown.
    """
    if (memory is not None) + (translate is not None) + page_tables + backtrace > 1:
        raise UsageError("give one of --memory, --backtrace, --translate and --page-tables")
    with Snapshot(file, trust=trust) as snapshot:
        if symbols is not None:
            names: NamesOf = constantly(Symbols.open(symbols))
        else:
            names = partial(_own_names, snapshot) if kallsyms else constantly(None)
        if backtrace:
            _show_calls(snapshot, vcpu, names, as_json)
            return
        if translate is not None or page_tables:
            _show_addresses(snapshot, vcpu or 0, translate, as_json)
            return
        if memory is not None:
            gpa, data = memory[0], snapshot.read(*memory)
            if as_json:
                found = {"schema": SCHEMA, "address": f"{gpa:#x}", "bytes": data.hex()}
                click.echo(json.dumps(found))
            else:
                _print(hex_lines(gpa, data))
            return
        chosen = _chosen(snapshot, vcpu, whole, regs)
        if as_json:
            click.echo(json.dumps(document(snapshot, chosen), indent=2))
        elif regs is not None:
            _print(line for one in chosen for line in show_matching(one))
        else:
            if vcpu is None and part == "all":
                _print(lines(snapshot))
            _print(line for one in chosen for line in show_registers(one, part))
            pcs = {one["vcpu"]: int(one["registers"]["PC"], 16) for one in chosen}
            found_names = names(list(pcs.values()))
            for number, pc in pcs.items():
                if found_names is not None and (name := found_names.name(pc)):
                    echo(f"vCPU {number}: PC is in {name}")


def constantly(names: Names | None) -> NamesOf:
    """Return a function that returns the same names for all addresses."""
    return lambda addresses: names


def _own_names(snapshot: Snapshot, addresses: Sequence[int]) -> Names:
    """Return the names of addresses that the guest's own symbol table has."""
    from pyvmm.debugger.kallsyms import find_names

    read = partial(read_memory, snapshot)
    return Known(find_names(pieces_of(snapshot), read, snapshot.vcpus, addresses))


def _show_calls(snapshot: Snapshot, number: int | None, names: NamesOf, as_json: bool) -> None:
    """Print the calls of one vCPU or of all, and the instructions around PC."""
    from pyvmm.debugger.disassembly import code_around

    numbers = range(len(snapshot.vcpus)) if number is None else [_checked(snapshot, number)]
    read = partial(read_memory, snapshot)
    chains = {vcpu: call_chain(snapshot.vcpus[vcpu], read) for vcpu in numbers}
    codes = {
        str(vcpu): code.to_json()
        for vcpu in numbers
        if (code := code_around(snapshot.vcpus[vcpu], read)) is not None
    }
    found = {str(vcpu): [f"{at:#x}" for at in chain] for vcpu, chain in chains.items()}
    named = names(named_in(found.values()))
    document = {"schema": SCHEMA, "backtraces": found, "code": codes}
    output.show(as_json, document, backtrace_lines(found, codes, named))


def _show_addresses(snapshot: Snapshot, number: int, virtual: int | None, as_json: bool) -> None:
    """Print where a virtual address is, or all page tables if it is None."""
    vcpu = snapshot.vcpus[_checked(snapshot, number)]
    read = partial(read_memory, snapshot)

    if virtual is not None:
        found = addresses.translation(vcpu, read, virtual)
        output.show(as_json, {"schema": SCHEMA, **found}, translation_lines(found))
        return
    found = whole_tables(lambda start: addresses.page_tables(vcpu, read, start))
    output.show(as_json, {"schema": SCHEMA, **found}, table_lines(found))


def _checked(snapshot: Snapshot, vcpu: int) -> int:
    """Check the number of a vCPU, and return it."""
    count = len(snapshot.vcpus)
    if not 0 <= vcpu < count:
        raise UsageError(f"--vcpu {vcpu}: {snapshot.path} has vCPUs 0 to {count - 1}")
    return vcpu


def _print(text: Iterable[str]) -> None:
    for line in text:
        echo(line)


def _chosen(
    snapshot: Snapshot, vcpu: int | None, whole: bool, patterns: str | None
) -> list[VcpuRegisters]:
    """Return the vCPUs and registers that the options choose."""
    numbers = range(len(snapshot.vcpus)) if vcpu is None else [_checked(snapshot, vcpu)]
    chosen = [snapshot.registers(number, whole=whole) for number in numbers]
    if patterns is None:
        return chosen
    asked = [text.strip().upper() for text in patterns.split(",")]
    for one in chosen:
        one["registers"] = {
            name: text
            for name, text in one["registers"].items()
            if any(
                fnmatchcase(known.upper(), pattern)
                for known in (name, one.get("names32", {}).get(name, name))
                for pattern in asked
            )
        }
    if not any(one["registers"] for one in chosen):
        raise UsageError(
            f"--regs {patterns}: no register of {snapshot.path} matches",
            hint="separate shell patterns by commas: 'X*,PC', '*_EL1'",
        )
    return chosen


def document(snapshot: Snapshot, chosen: list[VcpuRegisters]) -> dict[str, Any]:
    """Return the JSON document: the file's state, with registers by name."""
    state: dict[str, Any] = snapshot.state.document()
    saved = snapshot.file.document["vcpus"]
    state["vcpus"] = [saved[one["vcpu"]] | one for one in chosen]
    state["gic"] = {
        "kind": snapshot.state.gic.kind,
        "nr_irqs": snapshot.state.gic.nr_irqs,
        "parts": [
            {
                "part": part.part,
                "vcpu": part.vcpu,
                "registers": {name: f"{value:#010x}" for name, value in part.registers.items()},
            }
            for part in snapshot.gic_parts()
        ],
    }
    return {
        "schema": SCHEMA,
        "file": _file(snapshot),
        "state": state,
        "outside": [vars(one) | {"path": str(one.path)} for one in _outside(snapshot)],
        "stored": [[f"{low:#x}", f"{high:#x}"] for low, high in snapshot.file.stored()],
    }


def _outside(snapshot: Snapshot) -> Iterator[Outside]:
    """Yield the files and directories outside the snapshot that a restore opens."""
    yield from parents(snapshot.file)
    yield from outside(snapshot.state.config)


def _file(snapshot: Snapshot) -> dict[str, Any]:
    file = snapshot.file
    return {
        "path": str(file.path),
        "version": file.version,
        "own": file.is_own,
        "identity": file.identity,
        "size": file.header.memory.end,
        "parents": [
            {"path": str(parent.path), "identity": parent.identity}
            for parent in reversed(file.chain()[:-1])
        ],
    }


def lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield everything but vCPUs' registers."""
    yield from _headlines(snapshot)
    yield from _map(snapshot)
    yield "devices"
    for name, state in snapshot.state.devices.items():
        yield from _device(name, state)
    for part in snapshot.gic_parts():
        if part.part != CPU.name or snapshot.state.gic.kind == GICV2:  # else in a vCPU
            yield from _gic(part, snapshot.state.gic.kind)


def _headlines(snapshot: Snapshot) -> Iterator[str]:
    state, file, taken = snapshot.state, snapshot.file, snapshot.state.taken
    config = state.config
    size = show_size(file.header.memory.end)
    yield f"{snapshot.path}: snapshot {file.identity[:12]}, {size}"
    for parent in reversed(file.chain()[:-1]):
        yield f"  parent     {parent.path}, {parent.identity[:12]}, read-only"
    yield f"  saved      {'by you, on this machine' if file.is_own else 'without a mark of yours'}"
    yield f"  taken      {taken.time} by pyvmm {taken.pyvmm}"
    yield f"  on         {taken.machine}, Linux {taken.kernel}, MIDR_EL1 {taken.midr:#010x}"
    vls = f"SVE {vl.show(state.vls)} bits" if state.vls else "no SVE"
    features = ", ".join(sorted(feature.value for feature in state.features))
    yield f"  machine    {config.name}: {len(state.vcpus)} vCPUs, {state.gic.kind}, {vls}"
    yield f"  addresses  {state.ipa_bits} bits"
    if features:
        yield f"  cpu        {features}"
    yield f"  image      {config.image}"
    seconds = state.clock.virtual / state.clock.hz
    yield f"  clock      {seconds:.3f} s since the counter's 0, at {state.clock.hz} Hz"
    for one in outside(config):
        yield f"  opens      {one}"
    for warning in state.warnings:
        yield f"  warning    {warning}"


def _map(snapshot: Snapshot) -> Iterator[str]:
    yield "memory"
    stored = snapshot.file.stored()
    for area in snapshot.state.memory:
        mine = [r for r in stored if r[0] < area.end and r[1] > area.base]
        held = sum(min(high, area.end) - max(low, area.base) for low, high in mine)
        yield (
            f"  {area.base:#012x}-{area.end:#012x}  {area.name:7} {show_size(area.size)}, "
            f"of which {held // PAGE} pages are not zero, in {counted(len(mine), 'range')}"
        )


def _device(name: str, state: Any) -> Iterator[str]:
    """Yield a device's state; long values are cut; --json has them complete."""
    if not isinstance(state, dict):
        state = {"": state}
    for number, (key, value) in enumerate(islice(state.items(), MOST_KEYS)):
        words = (
            ", ".join(f"{k}={_short(v)}" for k, v in value.items())
            if (isinstance(value, dict))
            else _short(value)
        )
        yield f"  {'' if number else name:10} {key} {words}".rstrip()
    if len(state) > MOST_KEYS:
        yield f"  {'':10} and {len(state) - MOST_KEYS} more"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= WIDE else f"{text[:WIDE]}..."


def _gic(part: GicPart, kind: str) -> Iterator[str]:
    """Yield the registers that are not zero."""
    yield f"{kind} {part.part}" + ("" if part.vcpu is None else f" of vCPU {part.vcpu}")
    cells = [f"{name:18} {value:#010x}" for name, value in part.registers.items() if value]
    for at in range(0, len(cells), 3):
        yield f"  {'  '.join(cells[at : at + 3])}".rstrip()
    zero = len(part.registers) - len(cells)
    if zero:
        yield f"  zero: {zero} {'others' if cells else 'registers'}"


def hex_lines(gpa: int, data: bytes) -> Iterator[str]:
    """Yield memory in the format of hexdump -C; a star stands for repeated lines."""
    last, skipping = b"", False
    for at in range(0, len(data), ROW):
        row = data[at : at + ROW]
        if row == last and at + ROW < len(data):
            if not skipping:
                yield "*"
            skipping = True
            continue
        last, skipping = row, False
        halves = "  ".join(row[half : half + 8].hex(" ") for half in (0, 8) if row[half:])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{gpa + at:012x}  {halves:48}  |{text}|"
