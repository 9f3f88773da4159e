"""The run of cases, each on its own VMs; a failed case does not end the run."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Iterator

from pyvmm.errors import HostError, UsageError, VmmError
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.sve import host_vector_lengths, own_vector_lengths
from pyvmm.kvm.system import System
from pyvmm.svecheck import again, guest, registers, reglist, sets, states, vcpus
from pyvmm.svecheck.bench import Bench, Skip, SveHost
from pyvmm.svecheck.case import Case, CaseResult, Verdict, cases_of

SUBJECTS = (states, again, sets, registers, reglist, guest, vcpus)
CASES = tuple(case for subject in SUBJECTS for case in cases_of(subject))


def chosen(pattern: str | None) -> list[Case]:
    """Return the cases whose name contains the pattern, which may have ``*`` and ``?``.

    Raises: UsageError, if no name does.
    """
    if pattern is None:
        return list(CASES)
    found = [case for case in CASES if fnmatch.fnmatchcase(case.name, f"*{pattern}*")]
    if not found:
        subjects = ", ".join(dict.fromkeys(case.name.partition("/")[0] for case in CASES))
        raise UsageError(
            f"`pattern`={pattern}: no case has that in its name", hint=f"use for example {subjects}"
        )
    return found


def probe(system: System) -> SveHost:
    """Return the vector lengths of this host.

    Raises: HostError, if it lacks SVE.
    """
    if not system.has(Cap.ARM_SVE):
        raise HostError(
            "this host's KVM lacks SVE (KVM_CAP_ARM_SVE is 0)",
            hint="use an emulated host with SVE: `host.kind`=emulated `host.cpu`=max",
        )
    return SveHost(host_vector_lengths(system), own_vector_lengths().prctl)


def run(system: System, host: SveHost, cases: Iterable[Case]) -> Iterator[CaseResult]:
    """Run the cases in turn."""
    for case in cases:
        yield run_case(case, Bench(system, host))


def run_case(case: Case, bench: Bench) -> CaseResult:
    """Run one case; an error becomes its result."""
    began = time.monotonic()
    expected = case.expects(bench.host)
    skipped = ""
    try:
        with bench:
            got = case.act(bench) or "none"
    except Skip as skip:
        got, skipped = "", str(skip)
    except VmmError as error:
        got = str(error)
    except Exception as error:  # the case cannot read the kernel's answer
        got = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    verdict, why = (Verdict.SKIPPED, skipped) if skipped else judge(case, expected, got)
    return CaseResult(case, verdict, expected, got, why, seconds)


def judge(case: Case, expected: str, got: str) -> tuple[Verdict, str]:
    """Return the verdict on an outcome; for a known difference also the kernels that have it."""
    if got == expected:
        return Verdict.OK, ""
    for known in case.known:
        if got == known.outcome:
            return Verdict.KNOWN, known.which
    return Verdict.DIFFERS, ""
