"""JSON files that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.base.documents import LARGEST, read_document
from pyvmm.errors import UsageError


def width(document: Any) -> int:
    return int(document["width"])


def read(path: Path) -> int:
    return read_document(path, width, "a picture", "draw one")


def test_document_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "p").write_text('{"width": "3"}')

    assert read(tmp_path / "p") == 3


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "[]", "3", "{}", '{"width": "x"}', '{"width": null}', "\udcff",
     '{"width": 3}' + " " * LARGEST],
    ids=["empty", "cut", "deep", "list", "number", "key", "value", "type", "bytes", "long"],
)  # fmt: skip
def test_file_with_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(UsageError, match=f"{tmp_path}/p: not a picture") as refused:
        read(tmp_path / "p")
    assert refused.value.hint == "draw one"


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("none", "No such file")])
def test_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=f"cannot be read: {reason}"):
        read(tmp_path / name)
