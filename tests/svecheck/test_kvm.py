"""The conformance run on a real KVM: it passes here, and it detects deviations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from pyvmm.errors import GuestError
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.system import System
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.svecheck import ids
from pyvmm.svecheck.bench import Bench, SveHost
from pyvmm.svecheck.case import Case, CaseResult, Verdict
from pyvmm.svecheck.runner import CASES, judge, probe, run_case
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
def host(system: System) -> SveHost:
    return probe(system)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_passes_and_differs_if_its_expectation_is_inverted(
    case: Case, system: System, host: SveHost
) -> None:
    expected = case.expects(host)
    inverted = case.replace(expected=f"not {expected}", known=())

    result = run_case(inverted, Bench(system, host))

    if result.verdict is not Verdict.SKIPPED:
        assert result.verdict is Verdict.DIFFERS
        assert judge(case, expected, result.got)[0] is not Verdict.DIFFERS, result.got


@pytest.mark.parametrize(
    ("lie", "name"),
    [(lie, name) for lie, names in LIES.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_case_detects_a_lying_vcpu(
    lie: type[Liar], name: str, system: System, host: SveHost
) -> None:
    result = lied_to(lie, BY_NAME[name], system, host)

    if result.verdict is not Verdict.SKIPPED:
        assert result.verdict is Verdict.DIFFERS, result.got


def lied_to(lie: type[Liar], case: Case, system: System, host: SveHost) -> CaseResult:
    class LyingBench(Bench):
        def created(self, vm: Vm | None = None, number: int = 0) -> Vcpu:
            return cast("Vcpu", lie(super().created(vm, number)))

    return run_case(case, LyingBench(system, host))


def test_case_accepts_surplus_slices_as_in_the_series(system: System, host: SveHost) -> None:
    class Series(AcceptsSurplusSlices):
        def set_one_reg(self, reg: int, value: int) -> None:
            if reg not in ids.SURPLUS.values():
                self.honest.set_one_reg(reg, value)

    case = BY_NAME["registers/surplus-slices-as-the-series-had-them"]

    assert lied_to(Series, case, system, host).verdict is Verdict.OK


def test_bench_ends_a_guest_that_never_reports(
    system: System, host: SveHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvmm.svecheck.bench.TIMEOUT_S", 0.3)

    with Bench(system, host) as bench:
        vcpu = bench.final(vm=bench.vm_with("zcr"))
        with pytest.raises(GuestError, match="the guest reported 1 of 2, then: INTR"):
            bench.reports(vcpu, 2)
