"""The rows of a ZCR_EL1 test as a text table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pyvmm.repro.model import Evidence, Settings

# Heading -> key in a row
COLUMNS: Final = {
    "PHASE": "phase", "LEN": "len", "ZCR": "zcr", "GUEST": "guest_vl", "PRCTL": "prctl",
    "RDVL": "rdvl", "MIN": "vl_min", "MAX": "vl_max", "HOLDS": "holds", "BAD": "bad",
    "TRUNC": "truncated", "ZEROED": "zeroed", "FOREIGN": "foreign", "P": "p", "FFR": "ffr",
    "LOOPS": "loops",
}  # fmt: skip


def lines(settings: Settings, found: Evidence) -> Iterator[str]:
    """Format the evidence."""
    yield f"host kernel  {found['kernel']}"
    yield f"watched      CPU {found.get('cpu')} of {found.get('cpus')}"
    if "vl" in found:
        lengths = ",".join(map(str, found["lengths"]))
        yield f"lengths      {lengths} bits; the watcher has {found['vl']} bytes"
    if found["armed"]:
        yield "armed        ptrace makes the kernel load the watcher's SVE state before each hold"
    for name in ("module", "control_module"):
        if name in found:
            values = ", ".join(f"{key}={value:#x}" for key, value in found[name].items())
            yield f"{name.replace('_', ' '):12} {values}"
    if found.get("warnings"):
        yield from (f"kernel log   {line}" for line in found["warnings"])
    if found["rows"]:
        yield ""
        yield from _table(found["rows"])


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    cells = [list(COLUMNS)] + [[_cell(row, key) for key in COLUMNS.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *rest = zip(line, widths, strict=True)
        yield "  ".join([f"{first[0]:{first[1]}}", *(f"{text:>{width}}" for text, width in rest)])


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if key == "phase" and "control" in row:
        return f"control {row['control']}"
    return "-" if value is None else str(value)
