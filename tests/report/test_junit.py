"""JUnit documents with any text that a guest prints."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.report import junit


@given(st.text())
def test_any_text_makes_a_readable_document(text: str) -> None:
    case = junit.Testcase(classname="c", name=text, verdict="failure", reason=text, output=text)

    root = ET.fromstring(junit.document("suite", [case], {"where": text}))

    assert len(root.findall("testsuite/testcase/failure")) == 1


def test_case_without_a_reason_passed() -> None:
    root = ET.fromstring(junit.document("suite", [junit.Testcase(classname="c", name="n")], {}))

    case = root.find("testsuite/testcase")
    assert case is not None
    assert [*case] == []
    assert case.get("time") == "0.000"
