"""How often a guest is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.kvm.uapi import MpState
from pyvmm.machine.diagnosis import looking
from pyvmm.machine.diagnosis.looking import LOOKS, explain
from pyvmm.machine.diagnosis.rules import Look, VcpuLook

WORKS = Look(vcpus=(VcpuLook(id=0, pc=0x8008_0000),))
OFF = Look(vcpus=(VcpuLook(id=0, mp_state=MpState.STOPPED),))
CAUSE = "every vCPU is off by PSCI"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "APART_S", 0)


def shows(*looks: Look) -> tuple[Callable[[], Look], list[Look]]:
    """Return a function that returns these looks, the last one for ever, and what is left."""
    left = list(looks)
    return lambda: left.pop(0) if len(left) > 1 else left[0], left


def test_cause_is_found_in_the_first_two_looks() -> None:
    look, left = shows(OFF, OFF, WORKS)

    assert explain(look, lambda: True, sure=False) == CAUSE
    assert left == [WORKS]


def test_guest_that_has_just_started_gets_time_to_show_the_cause() -> None:
    look, _ = shows(WORKS, WORKS, OFF)

    assert explain(look, lambda: True, sure=False) == CAUSE


def test_guest_without_a_cause_is_described_at_the_end() -> None:
    look, left = shows(*[WORKS] * (LOOKS + 1), OFF)

    found = explain(look, lambda: True, sure=False)

    assert found is not None
    assert found.startswith("the guest has printed nothing: vCPU 0")
    assert left == [OFF]


def test_guest_that_prints_is_not_described() -> None:
    look, _ = shows(WORKS)

    assert explain(look, lambda: False, sure=False) is None


def test_only_a_cause_counts_when_it_must_be_sure() -> None:
    look, left = shows(WORKS, WORKS, OFF)

    assert explain(look, lambda: True, sure=True) is None
    assert left == [OFF]
