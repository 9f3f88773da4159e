"""What a run found: lines for people, JSON for programs, JUnit for continuous integration."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyvmm.errors import EXIT_FAILED, EXIT_OK
from pyvmm.svecheck.case import Result, Verdict

SCHEMA = 1
WIDTH = max(len(verdict) for verdict in Verdict)
INDENT = " " * (WIDTH + 2)

Where = Mapping[str, str]


def exit_code(results: Sequence[Result]) -> int:
    """Whether the kernel did what documents promise, known differences aside."""
    differs = any(result.verdict is Verdict.DIFFERS for result in results)
    return EXIT_FAILED if differs else EXIT_OK


def lines(result: Result, verbose: bool = False) -> Iterator[str]:
    """A case in one line, verdict first; where there is more to say, in some more."""
    case, verdict = result.case, result.verdict
    said = result.why if verdict is Verdict.SKIPPED else result.got
    yield f"{verdict:{WIDTH}}  {case.name}: {said}"
    if verbose or verdict is Verdict.DIFFERS:
        yield f"{INDENT}done: {case.done}"
        yield f"{INDENT}said: {case.promise.says} ({case.promise.source})"
    if verdict in (Verdict.DIFFERS, Verdict.KNOWN):
        yield f"{INDENT}promised: {result.expected}"
    if verdict is Verdict.KNOWN:
        yield f"{INDENT}known: {result.why}"


def summary(results: Sequence[Result]) -> str:
    """How many of each verdict there are."""
    counts = Counter(result.verdict for result in results)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    return f"{len(results)} case{'s' * (len(results) != 1)}: {words}"


def document(results: Sequence[Result], where: Where) -> dict[str, Any]:
    """The JSON document."""
    counts = Counter(result.verdict for result in results)
    return {
        "schema": SCHEMA,
        "where": dict(where),
        "counts": {str(verdict): counts[verdict] for verdict in Verdict},
        "cases": [_entry(result) for result in results],
    }


def _entry(result: Result) -> dict[str, Any]:
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


def junit(results: Sequence[Result], where: Where) -> bytes:
    """The JUnit document: a deviation is a failure, a known difference is told of and passes."""
    counts = Counter(result.verdict for result in results)
    suite = ET.Element(
        "testsuite",
        name="pyvmm sve check",
        tests=str(len(results)),
        failures=str(counts[Verdict.DIFFERS]),
        errors="0",
        skipped=str(counts[Verdict.SKIPPED]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in where.items():
        ET.SubElement(properties, "property", name=name, value=value)
    for result in results:
        _add(suite, result)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n".encode()


def _add(suite: ET.Element, result: Result) -> None:
    subject, _, name = result.case.name.partition("/")
    entry = ET.SubElement(
        suite,
        "testcase",
        classname=f"pyvmm.sve.check.{subject}",
        name=name,
        time=f"{result.seconds:.3f}",
    )
    text = "\n".join(lines(result, verbose=True))
    match result.verdict:
        case Verdict.DIFFERS:
            message = f"{result.got}, not {result.expected}"
            ET.SubElement(entry, "failure", message=message).text = text
        case Verdict.SKIPPED:
            ET.SubElement(entry, "skipped", message=result.why)
        case _:
            ET.SubElement(entry, "system-out").text = text
