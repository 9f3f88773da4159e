"""Snapshots without a register: what the guest loses."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.repro import worker
from pyvmm.repro.cases import find
from pyvmm.repro.cases.sve_snapshot import judge
from pyvmm.repro.model import Case, Evidence, Finding

SNAPSHOT = find("sve-snapshot")
DEFAULTS = SNAPSHOT.read({})


def row(left_out: str, wrong: int = 0, vl: int = 64, zcr: int = 15) -> dict[str, Any]:
    return {"left_out": left_out, "wrong": wrong, "vl": vl, "zcr": zcr, "complaints": []}


def found(*rows: dict[str, Any]) -> Evidence:
    return {"kernel": "Linux 6.1", "vl": 64, "zcr": 15, "listed": 49, "rows": list(rows)}


def verdict(evidence: Evidence) -> tuple[str, int]:
    finding = judge(DEFAULTS, evidence)
    return finding.verdict, finding.code


def test_guest_that_lost_every_register_left_out_is_reproduced() -> None:
    lost = found(row("nothing"), row("ffr", 1), row("zcr_el1", vl=16, zcr=0), row("z", 32))

    assert verdict(lost) == ("REPRODUCED", 1)


@pytest.mark.parametrize(
    ("ffr", "zcr", "z", "expected"),
    [
        (0, 15, 32, ("NOT REPRODUCED", 0)),
        (1, 15, 32, ("REPRODUCED IN PART", 1)),
        (0, 15, 0, ("INCONCLUSIVE", 3)),  # the guest detects nothing
    ],
)
def test_verdict_depends_on_which_registers_the_guest_lost(
    ffr: int, zcr: int, z: int, expected: tuple[str, int]
) -> None:
    rows = (row("nothing"), row("ffr", ffr), row("zcr_el1", zcr=zcr), row("z", z))

    assert verdict(found(*rows)) == expected


def test_snapshot_that_loses_registers_without_cause_is_broken() -> None:
    assert verdict(found(row("nothing", 3), row("ffr", 1))) == ("SNAPSHOT BROKEN", 1)


def test_error_is_inconclusive_or_unsupported() -> None:
    assert verdict({"trouble": "no KVM here", "rows": []}) == ("INCONCLUSIVE", 3)
    assert verdict({"trouble": "the host has no SVE", "rows": []}) == ("UNSUPPORTED", 3)


@pytest.mark.kvm
def test_guest_loses_exactly_the_registers_left_out() -> None:
    wishes = SNAPSHOT.read({"leave_out": "ffr,zcr_el1,p", "guest_max_vl": "256"})

    evidence = worker.do(Case(reproduction="sve-snapshot", settings=wishes, files={}))

    finding: Finding = judge(wishes, evidence)
    assert (finding.verdict, finding.code) == ("REPRODUCED", 1), evidence
    rows = {row["left_out"]: row for row in evidence["rows"]}
    assert {name: row["wrong"] for name, row in rows.items()} == {
        "nothing": 0, "ffr": 1, "zcr_el1": 0, "p": 16, "z": 32,
    }  # fmt: skip
    assert (rows["zcr_el1"]["zcr"], rows["zcr_el1"]["vl"]) == (0, 16)
    assert (rows["ffr"]["zcr"], rows["ffr"]["vl"]) == (15, 32)
    assert "ffr" in rows["ffr"]["complaints"][0]
