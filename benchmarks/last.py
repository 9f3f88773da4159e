"""The last run's figures, which are in the tree: what got worse since then.

Counted figures repeat to about 1 % on any machine; real times do not, so their limit is wide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Table
from benchmarks.rows import RATE

FILE: Final = Path(__file__).with_name("last.json")
KEPT: Final = ("unit", "pyvmm", "plain", "peer", "lkvm")
OURS: Final = {"pyvmm": "", "plain": " with --no-fast-mmio"}
COUNTED_LIMIT: Final = 1.03  # "virtio console, in" differs by more between two runs
TIMED_LIMIT: Final = 1.3

Last = dict[str, Any]


def read() -> Last:
    """Return the figures in the tree."""
    found: Last = json.loads(FILE.read_text(encoding="ascii"))
    return found


def keep(last: Last, about: Mapping[str, str], tables: Sequence[Table]) -> None:
    """Put a run's figures in the place of the old ones; rows that it did not measure stay."""
    last["about"] = dict(about)
    for table in tables:
        rows = last.setdefault("tables", {}).setdefault(table.title, {})
        for row in table.rows:
            rows[row["row"]] = {key: _short(row[key]) for key in KEPT if row[key] is not None}
    FILE.write_text(json.dumps(last, indent=1) + "\n", encoding="ascii")


def _short(value: Any) -> Any:
    """Round to four digits, so that two runs differ in few lines."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def worse(last: Last, tables: Sequence[Table]) -> Iterator[str]:
    """Yield a line for each figure of pyvmm that is worse than the last."""
    for table in tables:
        rows = last.get("tables", {}).get(table.title, {})
        limit = COUNTED_LIMIT if table.counted else TIMED_LIMIT
        for row in table.rows:
            for key, how in OURS.items():
                before, now = rows.get(row["row"], {}).get(key), row[key]
                if not before or not now:
                    continue
                ratio = before / now if row["unit"] == RATE.timed else now / before
                if ratio > limit:
                    yield (f"{row['row']}{how}: {now:.4g} {row['unit']}, was {before:.4g}"
                           f" ({(now / before - 1) * 100:+.0f} %)")  # fmt: skip
