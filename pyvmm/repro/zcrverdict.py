"""The verdict on a ZCR_EL1 test, with its reasons in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pyvmm.repro.model import CANNOT_TELL, NOT_THERE, THERE, Evidence, Finding, Settings

REPRODUCED: Final = "REPRODUCED"
LOST: Final = "REPRODUCED, CONTENTS LOST"
OTHER: Final = "CORRUPTION, OTHER"
KILLED: Final = "KILLED BY KERNEL"
BROKEN: Final = "BASELINE BROKEN"
CLEAN: Final = "NOT REPRODUCED"
INCONCLUSIVE: Final = "INCONCLUSIVE"
UNSUPPORTED: Final = "UNSUPPORTED"

LEN: Final = 0xF  # ZCR_ELx.LEN
# Source: Arm DDI 0487, HCR_EL2
HCR_E2H, HCR_TGE = 1 << 34, 1 << 27
WATCHED: Final = ("sweep", "toggle")
MINIMUM_LOOPS: Final = 200

Row = dict[str, Any]


def expected_vl(lengths: Iterable[int], vl: int, length: int) -> int:
    """Return a host's vector length in bytes if ZCR_EL1.LEN limits it; ``vl`` is its full length.

    ``lengths`` are the host's lengths in bits.  A LEN between them selects the next shorter one.
    """
    limit = min(8 * vl, 128 * (length + 1))
    return max(bits for bits in lengths if bits <= limit) // 8


def judge(settings: Settings, found: Evidence) -> Finding:
    """Return the verdict on the test."""
    for step in (_trouble, _starved, _baseline, _hook, _rows, _power):
        if (finding := step(settings, found)) is not None:
            return finding
    return _clean(found)


def _trouble(settings: Settings, found: Evidence) -> Finding | None:
    trouble = found.get("trouble")
    if trouble is None:
        return None
    verdict = {"killed": KILLED, "unsupported": UNSUPPORTED}.get(trouble["kind"], INCONCLUSIVE)
    warnings = tuple(f"kernel: {line}" for line in (found.get("warnings") or ())[:3])
    advice = "see `dmesg` on the host" if verdict == KILLED else ""
    return Finding(verdict, CANNOT_TELL, (trouble["text"], *warnings), advice)


def _starved(settings: Settings, found: Evidence) -> Finding | None:
    for row in found["rows"]:
        alone = row["phase"] == "before"
        if row["loops"] < MINIMUM_LOOPS or not (row["interrupted"] or alone):
            text = (
                f"watcher and guest did not share the CPU in {_name(row)}: {row['holds']} holds, "
                f"{row['loops']} reads of RDVL, {row['interrupted']} holds interrupted"
            )
            return Finding(INCONCLUSIVE, CANNOT_TELL, (text,), "run it again on an idle machine")
    return None


def _baseline(settings: Settings, found: Evidence) -> Finding | None:
    """Check the host while the guest allows every length: this bug cannot affect it then."""
    primed = [row for row in found["rows"] if row["phase"] in ("primed", "armed")]
    if not primed:
        return Finding(INCONCLUSIVE, CANNOT_TELL, ("no row has ZCR_EL1.LEN=15",))
    if _whole(primed[-1], found["vl"]):
        return None
    before = next(row for row in found["rows"] if row["phase"] == "before")
    why = (
        f"before any guest ran: {_seen(before)}",
        f"after a guest set ZCR_EL1.LEN to 15: {_seen(primed[-1])}"
        + (", with the arm step" if found["armed"] else ""),
    )
    advice = "" if found["armed"] else "use `arm`=auto to load the watcher's SVE state"
    return Finding(BROKEN, CANNOT_TELL, why, advice)


def _hook(settings: Settings, found: Evidence) -> Finding | None:
    """Check that the module ran and had its effect."""
    if settings["hack"] is None:
        return None
    module = found.get("module")
    if not module or not module["hits"]:
        why = "the module was loaded, but saw no return of kvm_arch_vcpu_put_fp()"
        return Finding(INCONCLUSIVE, CANNOT_TELL, (why,))
    if module["last_zcr_el12"] & LEN != settings["hack"]:
        why = f"ZCR_EL12 reads back as {module['last_zcr_el12']:#x}, not {settings['hack']}"
        return Finding(INCONCLUSIVE, CANNOT_TELL, (why,))
    if not module["last_hcr_el2"] & HCR_E2H:
        return Finding(UNSUPPORTED, CANNOT_TELL, ("HCR_EL2.E2H is 0: the host is nVHE",))
    return None


def _rows(settings: Settings, found: Evidence) -> Finding | None:
    watched = [row for row in found["rows"] if row["phase"] in WATCHED]
    wrong = [row for row in watched if not _whole(row, found["vl"])]
    if not watched:
        return Finding(INCONCLUSIVE, CANNOT_TELL, ("the evidence has no row of a sweep",))
    if not wrong:
        return None
    swept = [row for row in watched if row["phase"] == "sweep"]
    wanted = {id(row): _expected(settings, found, row) for row in swept}
    follows = all(row["vl_min"] == row["vl_max"] == wanted[id(row)] for row in swept)
    shorter = [row for row in swept if wanted[id(row)] < found["vl"]]
    if not (follows and shorter and any(row in wrong for row in shorter)):
        return Finding(OTHER, THERE, _what_is_wrong(wrong, wanted))
    lost = [row for row in wrong if row["zeroed"] or row["foreign"]]
    why = [_rule(settings, swept)]
    if found["armed"]:
        why.append("the arm step was needed: ptrace made the kernel load the watcher's SVE state")
    if lost:
        zeroed, foreign = (sum(row[kind] for row in lost) for kind in ("zeroed", "foreign"))
        why.append(f"contents were lost: {zeroed} holds returned zeros, {foreign} returned "
                   "foreign bytes")  # fmt: skip
    return Finding(LOST if lost else REPRODUCED, THERE, tuple(why))


def _power(settings: Settings, found: Evidence) -> Finding | None:
    """Check that the bug would have shortened the host's vectors in some row."""
    vl = found["vl"]
    swept = [row for row in found["rows"] if row["phase"] == "sweep"]
    if any(_expected(settings, found, row) < vl for row in swept):
        return None
    field = "`zcr`" if settings["hack"] is None else f"`hack`={settings['hack']}"
    why = f"the host's vectors have {vl} bytes, and {field} does not shorten them"
    return Finding(INCONCLUSIVE, CANNOT_TELL, (why,), "choose a smaller LEN, for example 0")


def _clean(found: Evidence) -> Finding:
    """Return the verdict if no row is wrong: it depends on the controls."""
    controls = [row for row in found["rows"] if row["phase"] == "control"]
    if not controls:
        why = "no row was wrong, but without a control that proves nothing"
        return Finding(INCONCLUSIVE, CANNOT_TELL, (why,), "do not use `control`=none")
    missed = [row["control"] for row in controls if not is_caught(row, found["vl"])]
    if missed:
        why = f"no row was wrong, but the watcher missed the damage of controls: {missed}"
        return Finding(INCONCLUSIVE, CANNOT_TELL, (why,))
    swept = [row for row in found["rows"] if row["phase"] in WATCHED]
    holds = sum(row["holds"] for row in swept)
    kinds = ", ".join(f"{row['control']} {_caught(row)}" for row in controls)
    return Finding(
        CLEAN,
        NOT_THERE,
        (
            f"the host kept {found['vl']} bytes and their contents in {holds} holds, "
            f"{sum(row['interrupted'] for row in swept)} of them interrupted",
            f"controls caught: {kinds}",
        ),
    )


def is_caught(row: Row, vl: int) -> bool:
    """Return whether the watcher caught the damage of a control every time."""
    if row["control"] == "module":
        return bool(row["bad"]) and row["vl_min"] < vl
    return bool(row["damaged"] > 0 and row["caught"] == row["damaged"])


def _caught(row: Row) -> str:
    done = row["bad"] if row["control"] == "module" else row["caught"]
    return f"{done}/{row['holds'] if row['control'] == 'module' else row['damaged']}"


def _expected(settings: Settings, found: Evidence, row: Row) -> int:
    length = row["zcr"] & LEN if settings["hack"] is None else settings["hack"]
    return expected_vl(found["lengths"], found["vl"], length)


def _whole(row: Row, vl: int) -> bool:
    lengths = (row["vl_min"], row["vl_max"], row["rdvl"], row["prctl"])
    return not row["bad"] and not row["low"] and set(lengths) == {vl}


def _rule(settings: Settings, swept: list[Row]) -> str:
    if settings["hack"] is not None:
        return (f"with {settings['hack']} written to ZCR_EL12, a process of the host has "
                f"{swept[0]['vl_min']} bytes in each of {len(swept)} rows")  # fmt: skip
    seen = {row["zcr"] & LEN: row["vl_min"] for row in swept}
    shown = ", ".join(f"{length}: {vl}" for length, vl in sorted(seen.items()))
    return (f"the host's vector length follows the guest's ZCR_EL1.LEN in each of "
            f"{len(swept)} rows ({shown} bytes)")  # fmt: skip


def _what_is_wrong(wrong: list[Row], wanted: dict[int, int]) -> tuple[str, ...]:
    lines = [
        f"{_name(row)}: {_seen(row)}"
        + (f"; ZCR_EL1 would give {wanted[id(row)]}" if id(row) in wanted else "")
        for row in wrong[:4]
    ]
    return (f"{len(wrong)} rows are wrong, but do not follow ZCR_EL1.LEN", *lines)


def _seen(row: Row) -> str:
    """Describe a row."""
    return (f"RDVL returns {_span(row)} bytes, prctl() returns {row['prctl']}, and "
            f"{row['bad']} of {row['holds']} holds are bad")  # fmt: skip


def _span(row: Row) -> str:
    low, high = row["vl_min"], row["vl_max"]
    return str(low) if low == high else f"{low} to {high}"


def _name(row: Row) -> str:
    length = "" if row["len"] is None else f" LEN={row['len']}"
    return f"{row['phase']}{length}"
