"""The results of a run: text for people, JSON for programs, JUnit for continuous integration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.report import junit
from pyvmm.svecheck.case import CaseResult, Verdict

SCHEMA = 1
WIDTH = max(len(verdict) for verdict in Verdict)
INDENT = " " * (WIDTH + 2)

Where = Mapping[str, str]


def exit_code(results: Sequence[CaseResult]) -> int:
    """Return failure if a case differs from its promise; known differences pass."""
    differs = any(result.verdict is Verdict.DIFFERS for result in results)
    return EXIT_FAILED if differs else EXIT_OK


def lines(result: CaseResult, verbose: bool = False) -> Iterator[str]:
    """Format a result as a line with the verdict first, and lines with details if needed."""
    case, verdict = result.case, result.verdict
    said = result.why if verdict is Verdict.SKIPPED else result.got
    yield f"{verdict:{WIDTH}}  {case.name}: {said}"
    if verbose or verdict is Verdict.DIFFERS:
        yield f"{INDENT}action: {case.done}"
        yield f"{INDENT}document: {case.promise.says} ({case.promise.source})"
    if verdict in (Verdict.DIFFERS, Verdict.KNOWN):
        yield f"{INDENT}promised: {result.expected}"
    if verdict is Verdict.KNOWN:
        yield f"{INDENT}known: {result.why}"


def summary(results: Sequence[CaseResult]) -> str:
    """Return the number of results for each verdict."""
    counts = Counter(result.verdict for result in results)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    return f"{len(results)} case{'s' * (len(results) != 1)}: {words}"


def document(results: Sequence[CaseResult], where: Where) -> dict[str, Any]:
    """Return the results as JSON."""
    counts = Counter(result.verdict for result in results)
    return {
        "schema": SCHEMA,
        "where": dict(where),
        "counts": {str(verdict): counts[verdict] for verdict in Verdict},
        "cases": [_entry(result) for result in results],
    }


def _entry(result: CaseResult) -> dict[str, Any]:
    case = result.case
    return {
        "name": case.name,
        "verdict": str(result.verdict),
        "done": case.done,
        "says": case.promise.says,
        "source": case.promise.source,
        "expected": result.expected,
        "got": result.got,
        "why": result.why or None,
        "seconds": round(result.seconds, 4),
    }


def junit_document(results: Sequence[CaseResult], where: Where) -> bytes:
    """Return the results as JUnit: a deviation fails, a known difference passes with its reason."""
    return junit.document("pyvmm sve check", [_testcase(result) for result in results], where)


def _testcase(result: CaseResult) -> junit.Testcase:
    subject, _, name = result.case.name.partition("/")
    text = "\n".join(lines(result, verbose=True))
    verdict = {Verdict.DIFFERS: "failure", Verdict.SKIPPED: "skipped"}.get(result.verdict, "")
    return junit.Testcase(
        classname=f"pyvmm.sve.check.{subject}",
        name=name,
        seconds=result.seconds,
        verdict=verdict,
        reason=result.why or f"{result.got}, not {result.expected}",
        details=text if verdict == "failure" else "",
        output="" if verdict else text,
    )
