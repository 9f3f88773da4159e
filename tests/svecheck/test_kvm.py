"""The conformance run on a real KVM: it holds here, and it is not blind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import cast

import pytest

from pyvmm.errors import GuestError
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.svecheck import ids
from pyvmm.svecheck.bench import Bench, Wrap
from pyvmm.svecheck.case import Case, Result, Verdict
from pyvmm.svecheck.runner import CASES, judge, probe, run_case
from pyvmm.svecheck.target import Target
from tests.svecheck.liars import LIES, AcceptsSurplusSlices, Liar

pytestmark = pytest.mark.kvm

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System.open() as system:
        if not system.has(Cap.ARM_SVE):
            pytest.skip("this host has no SVE")
        yield system


@pytest.fixture(scope="module")
def target(system: System) -> Target:
    return probe(system)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_holds_here_and_differs_with_its_expectation_inverted(
    case: Case, system: System, target: Target
) -> None:
    expected = case.expects(target)
    inverted = dataclasses.replace(case, expected=f"not {expected}", known=())

    result = run_case(inverted, Bench(system, target))

    if result.verdict is not Verdict.SKIPPED:
        assert result.verdict is Verdict.DIFFERS
        assert judge(case, expected, result.got)[0] is not Verdict.DIFFERS, result.got


@pytest.mark.parametrize(
    ("lie", "name"),
    [(lie, name) for lie, names in LIES.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_lie_is_noticed(lie: type[Liar], name: str, system: System, target: Target) -> None:
    result = lied_to(lie, BY_NAME[name], system, target)

    if result.verdict is not Verdict.SKIPPED:
        assert result.verdict is Verdict.DIFFERS, result.got


def lied_to(lie: type[Liar], case: Case, system: System, target: Target) -> Result:
    return run_case(case, Bench(system, target, cast("Wrap", lie)))


def test_series_that_accepted_surplus_slices_would_keep_its_promise(
    system: System, target: Target
) -> None:
    class Series(AcceptsSurplusSlices):
        def set_one_reg(self, reg: int, value: int) -> None:
            if reg not in ids.SURPLUS.values():
                self.honest.set_one_reg(reg, value)

    case = BY_NAME["registers/surplus-slices-as-the-series-had-them"]

    assert lied_to(Series, case, system, target).verdict is Verdict.OK


def test_guest_that_never_reports_is_ended(
    system: System, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvmm.svecheck.bench.PATIENCE_S", 0.3)

    with Bench(system, target) as bench:
        vcpu = bench.final(vm=bench.vm_with("zcr"))
        with pytest.raises(GuestError, match="the guest reported 1 of 2, then: INTR"):
            bench.reports(vcpu, 2)
