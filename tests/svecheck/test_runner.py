"""The runner's verdicts, on cases that need no KVM."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import cast

import pytest

from pyvmm.errors import GuestError, HostError, KvmError, UsageError
from pyvmm.kvm.system import System
from pyvmm.svecheck import runner
from pyvmm.svecheck.bench import Bench, Skip, SveHost, alike, each, outcome
from pyvmm.svecheck.case import Case, Known, Promise, Verdict, case

PROMISE = Promise("it is refused", "api.rst", "4.1")
TARGET = SveHost(frozenset({128}), frozenset({128}))
NO_SYSTEM = cast("System", None)


def refuse(number: int = errno.EINVAL) -> None:
    raise KvmError("KVM_RUN", "vcpu 0", number)


def made(act: Callable[[Bench], str], *known: Known, expected: str = "EINVAL") -> Case:
    return Case("runner/stub", "do it", PROMISE, expected, act, known)


def run(case: Case) -> tuple[Verdict, str, str]:
    result = runner.run_case(case, Bench(NO_SYSTEM, TARGET))
    return result.verdict, result.got, result.why


def raising(error: Exception) -> Callable[[Bench], str]:
    def act(bench: Bench) -> str:
        raise error

    return act


def test_promised_outcome_is_ok() -> None:
    assert run(made(lambda bench: outcome(refuse))) == (Verdict.OK, "EINVAL", "")


def test_another_outcome_differs() -> None:
    assert run(made(lambda bench: "ok")) == (Verdict.DIFFERS, "ok", "")


def test_known_outcome_is_known_with_its_kernels() -> None:
    known = Known("ok", "since Linux 9")

    assert run(made(lambda bench: "ok", known)) == (Verdict.KNOWN, "ok", "since Linux 9")
    assert run(made(lambda bench: "EIO", known))[0] is Verdict.DIFFERS


def test_case_that_the_host_cannot_run_is_skipped_with_the_reason() -> None:
    def act(bench: Bench) -> str:
        bench.need_lengths(2)
        return "EINVAL"

    assert run(made(act)) == (
        Verdict.SKIPPED,
        "",
        "needs a host with 2 vector lengths or more",
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KvmError("KVM_RUN", "vcpu 0", errno.EIO), "KVM_RUN(vcpu 0): Input/output error [EIO]"),
        (GuestError("the guest reported 0 of 16"), "the guest reported 0 of 16"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
    ],
)
def test_error_in_a_case_differs_with_its_message(error: Exception, words: str) -> None:
    assert run(made(raising(error))) == (Verdict.DIFFERS, words, "")


def test_failing_case_does_not_end_the_run() -> None:
    cases = [made(raising(IndexError("x"))), made(raising(Skip("y"))), made(lambda _: "EINVAL")]

    results = runner.run(NO_SYSTEM, TARGET, cases)

    assert [result.verdict for result in results] == ["differs", "skipped", "ok"]


def test_expectation_may_depend_on_the_host() -> None:
    @case(PROMISE, lambda host: str(max(host.vls)))
    def longest_length(bench: Bench) -> str:
        """Look."""
        return "128"

    assert (longest_length.name, longest_length.done) == ("test_runner/longest-length", "Look")
    assert run(longest_length)[0] is Verdict.OK


def test_alike_joins_equal_outcomes_and_lists_others() -> None:
    assert each({"Z0": refuse, "Z1": refuse}) == "EINVAL"
    assert each({"Z0": refuse, "Z1": lambda: None, "Z2": refuse}) == "EINVAL: Z0 Z2; ok: Z1"
    assert (
        alike({str(n): "ok" if n else "no" for n in range(9)})
        == "no: 0; ok: 1 2 3 4 5 6 and 2 more"
    )


def test_pattern_that_matches_no_case_is_refused() -> None:
    with pytest.raises(UsageError, match="`pattern`=nonsense: no case") as caught:
        runner.chosen("nonsense")

    assert "states" in (caught.value.hint or "")


def test_host_without_sve_is_refused() -> None:
    class Without:
        def has(self, cap: int) -> bool:
            return False

    with pytest.raises(HostError, match="KVM lacks SVE"):
        runner.probe(cast("System", Without()))
