"""The first page, the index and the state of forged files."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.errors import UsageError
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot import format
from pyvmm.snapshot.codec import Damaged
from pyvmm.snapshot.format import PAGE, Extent, Header, Memory
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restorememory import fill

BASE = 0x8000_0000
HUGE = [0, 1, -1, 4095, 4096, 8192, 2**21, 2**40, 2**52, 2**63, 2**64, 2**80, -4096]


def forged(
    path: Path,
    *,
    state: bytes = b"{}",
    extents: list[tuple[int, int, int]] | None = None,
    memory: bytes = bytes(PAGE),
    header: dict[str, Any] | None = None,
    hashes: list[bytes] | None = None,
) -> Path:
    """Write a file with matching hashes and the given values; the defaults are valid."""
    state = state.ljust(format.whole_pages(len(state)), b"\n")
    at = 2 * PAGE + len(state) if memory else PAGE + len(state)
    if extents is None:
        extents = [(BASE, PAGE, 2 * PAGE + len(state))]
    blocks = hashes if hashes is not None else [hashlib.sha256(memory).digest()]
    index = b"".join([*(struct.pack("<QQQ", *e) for e in extents), *blocks]).ljust(PAGE, b"\0")
    said = {
        "page": PAGE,
        "block": format.BLOCK,
        "state": {"offset": PAGE, "length": len(state), "sha256": sha256(state)},
        "index": {
            "offset": PAGE + len(state), "length": len(index), "sha256": sha256(index),
            "extents": len(extents),
        },
        "memory": {"offset": at, "length": len(memory)},
        "parent": None,
        **(header or {}),
    }  # fmt: skip
    path.write_bytes(first_page(json.dumps(said).encode()) + state + index + memory)
    return path


def first_page(text: bytes, version: bytes = b"1") -> bytes:
    body = text.ljust(PAGE - len(b"pyvmm snapshot 1 ") - 65, b"\n")
    return b"pyvmm snapshot %s %s\n%s" % (version, sha256(body).encode(), body)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def use(path: Path) -> bytes:
    """Use a file in every way."""
    with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, 1 << 16) as memory:
        snapshot.verify()
        fill(snapshot, [memory])
        assert snapshot.read(BASE, 1 << 16) == memory.read(BASE, 1 << 16)
        return memory.read(BASE, 1 << 16)


def test_forged_file_without_changes_is_accepted(tmp_path: Path) -> None:
    page = b"page".ljust(PAGE, b".")

    assert use(forged(tmp_path / "f", memory=page))[:PAGE] == page


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "empty"),
        (b"x" * 100, "too short"),
        (b"\x7fELF" + bytes(PAGE), "not a pyvmm snapshot"),
        (bytes(PAGE), "not a pyvmm snapshot"),
        (b"pyvmm snapshot 1 " + b"0" * 64 + b"\n" + bytes(PAGE), "first page is damaged"),
        (b"pyvmm snapshot 01 " + b"0" * 64 + b"\n" + bytes(PAGE), "first line is damaged"),
        (b"pyvmm snapshot 1 " + b"F" * 64 + b"\n" + bytes(PAGE), "first line is damaged"),
        (first_page(b"[]"), "the header is not a JSON object"),
        (first_page(b"{"), "the header is not JSON"),
        (first_page(b"\xff"), "the header is not JSON"),
        (first_page(b"{}"), "header.state is missing"),
        (first_page(b"[" * 3000), "the header is not JSON"),
    ],
)
def test_open_refuses_a_file_that_is_no_snapshot(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "f").write_bytes(text)

    with pytest.raises(Damaged, match=rf"f: .*{re.escape(reason)}"):
        SnapshotFile.open(tmp_path / "f")


def test_open_refuses_a_newer_version(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(first_page(b"whatever there will be", b"3"))

    with pytest.raises(UsageError, match="it has version 3, this pyvmm reads up to 2"):
        SnapshotFile.open(tmp_path / "f")


@pytest.mark.parametrize(
    "extents",
    [
        [(BASE, PAGE, 0)],  # zero, without a parent
        [(BASE, PAGE, 3 * PAGE), (BASE, PAGE, 3 * PAGE)],
        [(BASE + PAGE, PAGE, 3 * PAGE), (BASE, PAGE, 4 * PAGE)],
        [(BASE, PAGE, 3 * PAGE), (BASE + PAGE, PAGE, 3 * PAGE)],  # one page twice
        [(BASE, 2 * PAGE, 3 * PAGE), (BASE + PAGE, PAGE, 4 * PAGE)],
        [(BASE, 0, 3 * PAGE)],
        [(BASE, 3 * PAGE, 3 * PAGE)],  # beyond the end
        [(BASE, PAGE, 2 * PAGE)],  # the index
        [(BASE, PAGE, PAGE)],  # the state
        [(BASE + 1, PAGE, 3 * PAGE)],
        [(BASE, PAGE + 1, 3 * PAGE)],
        [(BASE, PAGE, 3 * PAGE + 1)],
        [(1 << 52, PAGE, 3 * PAGE)],
        [((1 << 64) - PAGE, PAGE, 3 * PAGE)],
        [((1 << 52) - PAGE, 2 * PAGE, 3 * PAGE)],
        [(BASE, (1 << 64) - PAGE, 3 * PAGE)],
        [(BASE, PAGE, (1 << 64) - PAGE)],
    ],
)
def test_open_refuses_invalid_extents(tmp_path: Path, extents: list[tuple[int, int, int]]) -> None:
    path = forged(tmp_path / "f", extents=extents, memory=bytes(2 * PAGE))

    with pytest.raises(Damaged, match=r"f: .*extent"):
        use(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"page": 65536}, "pages of 65536"),
        ({"block": 1}, "blocks of"),
        ({"surprise": 1}, "header.surprise"),
        ({"memory": {"offset": 3 * PAGE, "length": 1 << 60}}, "bytes of memory"),
        ({"memory": {"offset": 3 * PAGE, "length": -PAGE}}, "are not adjacent"),
        ({"memory": {"offset": 2 * PAGE, "length": 2 * PAGE}}, "are not adjacent"),
        ({"memory": {"offset": True, "length": PAGE}}, "not int"),
        ({"memory": {"offset": 3.0, "length": PAGE}}, "not int"),
        ({"memory": None}, "not an object"),
        ({"parent": {"sha256": "x", "path": "p"}}, "a malformed SHA-256"),
        ({"parent": {"sha256": "0" * 64, "path": "a\0b"}}, "a path cannot hold a NUL"),
        ({"parent": {"sha256": "0" * 64, "path": "nowhere"}}, "nowhere: cannot be read"),
        ({"mark": "0" * 64}, "a mark, which version 1 does not have"),
        ({"mark": "x"}, "malformed SHA-256"),
        ({"parent": {"sha256": "0" * 64, "path": "."}}, "its parent is elsewhere"),
        ({"parent": {"sha256": "0" * 64, "path": "f"}}, "has changed: it is snapshot"),
    ],
)
def test_open_refuses_an_invalid_header(
    tmp_path: Path, header: dict[str, Any], reason: str
) -> None:
    path = forged(tmp_path / "f", header=header)

    with pytest.raises(UsageError, match=rf"f: .*{re.escape(reason)}"):
        SnapshotFile.open(path)


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=st.lists(
        st.tuples(
            st.sampled_from(["state", "index", "memory"]),
            st.sampled_from(["offset", "length", "extents", "sha256"]),
            st.sampled_from([*HUGE, None, "", "0" * 64, [], {}, 1.5, True]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_open_refuses_or_accepts_any_number_in_the_header(
    tmp_path: Path, where: list[tuple[str, str, Any]]
) -> None:
    good_data = forged(tmp_path / "f").read_bytes()
    said = json.loads(good_data[:PAGE].split(b"\n", 1)[1])
    for part, field, value in where:
        said[part][field] = value
    data = first_page(json.dumps(said).encode()) + good_data[PAGE:]
    (tmp_path / "f").write_bytes(data)

    try:
        use(tmp_path / "f")
    except UsageError:
        return
    assert data == good_data  # the number was the valid one


number = st.sampled_from([0, 1, 2, 3, 4, 5, 8]).map(lambda n: n * PAGE) | st.sampled_from(
    [BASE, BASE + PAGE, BASE + 2 * PAGE, 1, 2**52, 2**63, 2**64 - PAGE, 2**64 - 1]
)


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(extents=st.lists(st.tuples(number, number, number), max_size=4))
def test_open_refuses_or_accepts_any_extents(
    tmp_path: Path, extents: list[tuple[int, int, int]]
) -> None:
    path = forged(tmp_path / "f", extents=extents, memory=b"x" * 3 * PAGE)

    try:
        use(path)
    except UsageError as error:
        assert error.message.startswith(str(path))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"[1]", "its state is not a JSON object"),
        (b"{", "its state is not JSON"),
        (b"{}{}", "its state is not JSON"),
        (b'{"a": NaN}', "its state is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "its state is not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "its state is not JSON"),
        (b'{"a": [' + b"[]," * 1_000_000 + b"1]}", "more than 1000000 values"),
        (b'{"a": "\xff"}', "its state is not JSON"),
    ],
)
def test_open_refuses_a_state_that_is_not_json(tmp_path: Path, state: bytes, reason: str) -> None:
    path = forged(tmp_path / "f", state=state)

    with pytest.raises(Damaged, match=re.escape(reason)):
        SnapshotFile.open(path)


def test_save_and_open_refuse_a_state_that_is_too_large(tmp_path: Path) -> None:
    size = format.MOST_STATE + 1
    path = forged(tmp_path / "f")
    said = json.loads(path.read_bytes()[:PAGE].split(b"\n", 1)[1])
    said["state"]["length"] = size - 1 + PAGE
    path.write_bytes(first_page(json.dumps(said).encode()))

    with pytest.raises(UsageError, match="too large for a snapshot"):
        format.pack_state({"a": "x" * size})
    with pytest.raises(Damaged, match=r"not adjacent|a state of"):
        SnapshotFile.open(path)


def test_open_refuses_data_after_the_index(tmp_path: Path) -> None:
    path = forged(tmp_path / "f", hashes=[hashlib.sha256(bytes(PAGE)).digest(), b"behind"])

    with pytest.raises(Damaged, match="data follows its index"):
        SnapshotFile.open(path)


def test_header_is_equal_after_pack_and_unpack() -> None:
    header = Header(
        state=format.StateSection(offset=PAGE, length=PAGE, sha256=format.sha256(bytes(PAGE))),
        index=format.Index(offset=2 * PAGE, length=PAGE, sha256="a" * 64, extents=1),
        memory=Memory(offset=3 * PAGE, length=PAGE),
        parent=format.Parent(sha256="b" * 64, path="päth/../x"),
        mark="c" * 64,
    )

    assert Header.unpack(header.pack())[0] == header


def test_header_refuses_a_parent_path_that_is_too_long() -> None:
    header = Header(
        state=format.StateSection(offset=PAGE, length=PAGE, sha256=format.sha256(bytes(PAGE))),
        index=format.Index(offset=2 * PAGE, length=PAGE, sha256="a" * 64, extents=1),
        memory=Memory(offset=3 * PAGE, length=PAGE),
        parent=format.Parent(sha256="b" * 64, path="x" * 4000),
    )

    with pytest.raises(UsageError, match="too long"):
        header.pack()


@given(st.integers(0, 1 << 22), st.integers(0, 1 << 23))
def test_blocks_cover_memory_and_end_at_aligned_offsets(offset: int, length: int) -> None:
    blocks = format.blocks(Memory(offset=offset, length=length))

    assert sum(end - start for start, end in blocks) == length
    assert all(end % format.BLOCK == 0 for _, end in blocks[:-1])
    assert all(0 < end - start <= format.BLOCK for start, end in blocks)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))


def test_extent_end_is_its_address_plus_its_length() -> None:
    assert Extent(BASE, PAGE, 0).end == BASE + PAGE
