"""JUnit reports for continuous integration.

Source: the JUnit schema of Jenkins' xUnit plugin (junit-10.xsd).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence

from pyvmm.base.records import Record

# Characters that XML 1.0 cannot contain; guests print any.  Source: XML 1.0, 2.2
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Testcase(Record, kw_only=True):
    """One case; its verdict is "failure", "error" or "skipped", or empty if it passed.

    ``reason`` and ``details`` belong to the verdict. ``output`` is what the case printed.
    """

    __test__ = False  # not a test for pytest

    classname: str
    name: str
    seconds: float = 0.0
    verdict: str = ""
    reason: str = ""
    details: str = ""
    output: str = ""


def document(suite: str, cases: Sequence[Testcase], properties: Mapping[str, str]) -> bytes:
    """Return the report of one test suite; ``properties`` describe the machine it ran on."""
    counts = Counter(case.verdict for case in cases)
    element = ET.Element(
        "testsuite",
        name=_clean(suite),
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(case.seconds for case in cases):.3f}",
    )
    listed = ET.SubElement(element, "properties")
    for name, value in properties.items():
        ET.SubElement(listed, "property", name=_clean(name), value=_clean(value))
    for case in cases:
        _add(element, case)
    root = ET.Element("testsuites")
    root.append(element)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n".encode()


def _add(suite: ET.Element, case: Testcase) -> None:
    element = ET.SubElement(
        suite,
        "testcase",
        classname=_clean(case.classname),
        name=_clean(case.name),
        time=f"{case.seconds:.3f}",
    )
    if case.verdict:
        verdict = ET.SubElement(element, case.verdict, message=_clean(case.reason))
        verdict.text = _clean(case.details) or None
    if case.output:
        ET.SubElement(element, "system-out").text = _clean(case.output)


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
