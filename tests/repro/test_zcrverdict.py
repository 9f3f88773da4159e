"""The verdict on each kind of rows."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.repro.zcrverdict import expected_vl, judge
from tests.repro.rows import LENGTHS, VL, control, evidence, following, row, settings

CLEAN = following({0: 64, 1: 64, 2: 64, 3: 64, 15: 64})
BUG = following({0: 16, 1: 32, 2: 48, 3: 64, 15: 64})


def verdict(found: dict[str, Any], **changed: Any) -> tuple[str, int]:
    finding = judge(settings(**changed), found)
    return finding.verdict, finding.code


@pytest.mark.parametrize(
    ("lengths", "vl", "length", "expected"),
    [
        (LENGTHS, 64, 2, 48),
        (LENGTHS, 64, 15, 64),
        ([128, 256, 512, 1024, 2048], 256, 6, 64),  # the next shorter one
        ([128 * n for n in range(1, 17)], 256, 6, 112),  # the experiment of the series
        (LENGTHS, 32, 3, 32),
    ],
)
def test_expected_length_is_limited_by_zcr_el1(
    lengths: list[int], vl: int, length: int, expected: int
) -> None:
    assert expected_vl(lengths, vl, length) == expected


def test_hunt_with_a_caught_control_is_not_reproduced() -> None:
    assert verdict(evidence([*CLEAN, row("toggle")])) == ("NOT REPRODUCED", 0)


def test_hunt_without_a_control_is_inconclusive() -> None:
    found = evidence(CLEAN)
    found["rows"] = [r for r in found["rows"] if r["phase"] != "control"]

    assert verdict(found) == ("INCONCLUSIVE", 3)


@pytest.mark.parametrize("missed", [control("zero", 6, 5), control("zero", 0, 0)])
def test_hunt_with_a_missed_control_is_inconclusive(missed: dict[str, Any]) -> None:
    found = evidence(CLEAN)
    found["rows"].append(missed)

    assert verdict(found) == ("INCONCLUSIVE", 3)


def test_module_control_is_caught_only_if_vectors_became_shorter() -> None:
    found = evidence(CLEAN)
    found["rows"].append(row("control", 0, control="module"))

    assert verdict(found) == ("INCONCLUSIVE", 3)

    found["rows"][-1] = row("control", 0, 16, control="module")
    assert verdict(found) == ("NOT REPRODUCED", 0)


def test_host_that_follows_zcr_el1_is_reproduced() -> None:
    assert verdict(evidence(BUG)) == ("REPRODUCED", 1)


def test_host_that_follows_the_module_s_value_is_reproduced() -> None:
    rows = following({0: 48, 3: 48, 15: 48})
    module = {"hits": 9, "last_zcr_el12": 2, "last_hcr_el2": 1 << 34}

    assert verdict(evidence(rows, module=module), hack=2) == ("REPRODUCED", 1)


def test_zeros_after_a_hold_are_contents_lost() -> None:
    toggle = row("toggle", None, vl_min=16, bad=3, zeroed=2)

    assert verdict(evidence([*BUG, toggle])) == ("REPRODUCED, CONTENTS LOST", 1)


@pytest.mark.parametrize(
    "rows",
    [
        following({0: 16, 1: 16, 2: 48}),  # not what LEN=1 gives
        [*following({3: 64, 15: 64}), row("toggle", bad=1, foreign=1)],  # no shorter row
        [row("sweep", 0, vl_min=16, bad=1), *following({1: 32})],  # only sometimes
        following({0: 64, 15: 32}),
        [row("sweep", 0, low=1)],
        [row("sweep", 0, bad=1, ffr=1)],
        [row("sweep", 0, prctl=32)],
    ],
)
def test_rows_that_do_not_follow_zcr_el1_are_other_corruption(rows: list[dict[str, Any]]) -> None:
    assert verdict(evidence(rows)) == ("CORRUPTION, OTHER", 1)


def test_wrong_baseline_is_broken_and_suggests_the_arm_step() -> None:
    found = evidence([])
    found["rows"] = [row("before", None, 16), row("primed", 15, 16)]

    finding = judge(settings(), found)

    assert (finding.verdict, finding.code) == ("BASELINE BROKEN", 3)
    assert "`arm`=auto" in finding.advice


def test_baseline_that_a_guest_corrects_is_good() -> None:
    found = evidence(BUG)
    found["rows"][0] = row("before", None, 16)

    assert verdict(found) == ("REPRODUCED", 1)


@pytest.mark.parametrize(
    "module",
    [
        None,
        {"hits": 0, "last_zcr_el12": 2, "last_hcr_el2": 1 << 34},
        {"hits": 5, "last_zcr_el12": 3, "last_hcr_el2": 1 << 34},
    ],
)
def test_module_without_a_hit_or_effect_is_inconclusive(module: dict[str, int] | None) -> None:
    assert verdict(evidence(CLEAN, module=module), hack=2) == ("INCONCLUSIVE", 3)


def test_module_on_a_host_without_vhe_is_unsupported() -> None:
    module = {"hits": 5, "last_zcr_el12": 2, "last_hcr_el2": 0}

    assert verdict(evidence(CLEAN, module=module), hack=2) == ("UNSUPPORTED", 3)


def test_len_that_shortens_nothing_is_inconclusive() -> None:
    module = {"hits": 9, "last_zcr_el12": 6, "last_hcr_el2": 1 << 34}
    rows = following({0: 64, 15: 64})

    assert verdict(evidence(rows, module=module), hack=6) == ("INCONCLUSIVE", 3)
    assert verdict(evidence(following({15: 64}))) == ("INCONCLUSIVE", 3)


@pytest.mark.parametrize("starved", [{"loops": 3}, {"interrupted": 0}])
def test_starved_watcher_is_inconclusive(starved: dict[str, int]) -> None:
    found = evidence([*CLEAN, row("sweep", 0, **starved)])

    assert verdict(found) == ("INCONCLUSIVE", 3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("killed", "KILLED BY KERNEL"),
        ("unsupported", "UNSUPPORTED"),
        ("inconclusive", "INCONCLUSIVE"),
    ],
)
def test_trouble_decides_the_verdict_before_the_rows(kind: str, expected: str) -> None:
    found = evidence(CLEAN, trouble={"kind": kind, "text": "so it was"}, warnings=["WARNING: x"])

    finding = judge(settings(), found)

    assert (finding.verdict, finding.code) == (expected, 3)
    assert finding.why == ("so it was", "kernel: WARNING: x")


def test_incomplete_hunt_is_inconclusive() -> None:
    for end in range(len(found := evidence(CLEAN)["rows"])):
        assert verdict(evidence([]) | {"rows": found[:end]})[0] == "INCONCLUSIVE"


def test_full_length_of_the_sample_is_the_longest_of_the_host() -> None:
    assert max(LENGTHS) == 8 * VL
