"""Made-up evidence of hunts: rows as a watcher would have counted them."""

from __future__ import annotations

from typing import Any

from pyvmm.repro.cases import find
from pyvmm.repro.model import Evidence, Settings

LENGTHS = [128, 256, 384, 512]
VL = 64


def row(phase: str, length: int | None = None, vl: int = VL, **more: Any) -> dict[str, Any]:
    """Return a row in which the host had ``vl`` bytes all the time."""
    bad = 0 if vl == VL else 2
    base: dict[str, Any] = {
        "phase": phase, "len": length, "holds": 2, "bad": bad, "truncated": bad, "zeroed": 0,
        "foreign": 0, "low": 0, "p": bad, "ffr": bad, "vl_min": vl, "vl_max": vl, "rdvl": vl,
        "prctl": VL, "loops": 5000, "loops_min": 2000, "interrupted": 2, "moved": 0,
        "damaged": 0, "caught": 0, "missed": 0, "arm_failed": 0,
    }  # fmt: skip
    if length is not None:
        base |= {"zcr": length, "guest_vl": min(16 * (length + 1), VL)}
    return base | more


def control(kind: str, damaged: int = 6, caught: int = 6) -> dict[str, Any]:
    """Return the row of a control with those counts."""
    return row("control", 15, control=kind, bad=caught, damaged=damaged, caught=caught)


def settings(**changed: Any) -> Settings:
    """Return the default settings with changes."""
    return find("zcr-el12").read({}) | changed


def evidence(rows: list[dict[str, Any]], **more: Any) -> Evidence:
    """Return a hunt with these rows between a good baseline and a caught control."""
    before = [row("before", interrupted=0), row("primed", 15)]
    return {
        "kernel": "Linux 6.1", "cpu": 1, "cpus": [0, 1], "vhe": True, "lengths": LENGTHS,
        "vl": VL, "armed": False, "children": {"guest": 0}, "warnings": [],
        "rows": [*before, *rows, control("vl")],
    } | more  # fmt: skip


def following(vl_of: dict[int, int]) -> list[dict[str, Any]]:
    """Return a sweep in which the host had these lengths, by the guest's LEN."""
    return [row("sweep", length, vl) for length, vl in vl_of.items()]
