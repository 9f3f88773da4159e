"""Chains flattened to one file; files packed and unpacked."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import UsageError, VmmError
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.transfer import export, flatten, unpack
from tests.conftest import tool
from tests.snapshot.files import BASE, DOCUMENT, SIZE, noise, restored, save, write_scene


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(BASE, SIZE) as memory:
        write_scene(memory)
        yield memory


@pytest.fixture
def child(tmp_path: Path, memory: GuestMemory) -> Path:
    save(tmp_path / "parent.snap", memory)
    memory.write(BASE + BLOCK, noise(PAGE, 8) + bytes(3 * PAGE))
    with SnapshotFile.open(tmp_path / "parent.snap") as parent:
        save(tmp_path / "child.snap", memory, [(BASE + BLOCK, BASE + BLOCK + 4 * PAGE)], parent)
    return tmp_path / "child.snap"


def packed(path: Path) -> bytes:
    with SnapshotFile.open(path) as snapshot:
        return b"".join(export(snapshot, path.parent, 3))


def test_flat_chain_needs_no_parent(child: Path, memory: GuestMemory, tmp_path: Path) -> None:
    flat = tmp_path / "flat.snap"

    with SnapshotFile.open(child) as snapshot:
        identity = flatten(snapshot, flat)
    child.with_name("parent.snap").unlink()

    with SnapshotFile.open(flat) as snapshot:
        assert (snapshot.identity, snapshot.document) == (identity, DOCUMENT)
    assert restored(flat) == memory.read(BASE, SIZE)


def test_flat_chain_equals_the_file_of_a_full_save(
    child: Path, memory: GuestMemory, tmp_path: Path
) -> None:
    save(tmp_path / "full.snap", memory)

    with SnapshotFile.open(child) as snapshot:
        flatten(snapshot, tmp_path / "flat.snap")

    assert (tmp_path / "flat.snap").read_bytes() == (tmp_path / "full.snap").read_bytes()


def test_flatten_may_replace_the_chain_s_own_file(child: Path, memory: GuestMemory) -> None:
    with SnapshotFile.open(child) as snapshot:
        flatten(snapshot, child)

    child.with_name("parent.snap").unlink()
    assert restored(child) == memory.read(BASE, SIZE)


def test_flatten_refuses_a_damaged_chain(child: Path, tmp_path: Path) -> None:
    parent = child.with_name("parent.snap")
    data = bytearray(parent.read_bytes())
    data[-1] ^= 1
    parent.write_bytes(data)

    with (
        SnapshotFile.open(child) as snapshot,
        pytest.raises(UsageError, match=r"parent\.snap: its memory is damaged"),
    ):
        flatten(snapshot, tmp_path / "flat.snap")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["child.snap", "parent.snap"]


def test_exported_file_unpacks_to_the_same_bytes(tmp_path: Path, memory: GuestMemory) -> None:
    identity = save(tmp_path / "one.snap", memory)

    assert unpack(io.BytesIO(packed(tmp_path / "one.snap")), "x", tmp_path / "two") == identity

    assert (tmp_path / "two").read_bytes() == (tmp_path / "one.snap").read_bytes()
    blocks = [(tmp_path / name).stat().st_blocks for name in ("one.snap", "two")]
    assert blocks[1] <= blocks[0]  # the file is sparse again


def test_export_packs_a_chain_as_one_file(child: Path, memory: GuestMemory, tmp_path: Path) -> None:
    data = packed(child)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child.snap", "parent.snap"]
    (tmp_path / "away").mkdir()

    unpack(io.BytesIO(data), "x", tmp_path / "away/moved.snap")

    assert restored(tmp_path / "away/moved.snap") == memory.read(BASE, SIZE)


def test_zstd_command_unpacks_an_exported_file(tmp_path: Path, memory: GuestMemory) -> None:
    save(tmp_path / "one.snap", memory)

    done = subprocess.run(
        [tool("zstd"), "-dc"], input=packed(tmp_path / "one.snap"), capture_output=True, check=True
    )

    assert done.stdout == (tmp_path / "one.snap").read_bytes()


def test_export_refuses_a_damaged_file(tmp_path: Path, memory: GuestMemory) -> None:
    save(tmp_path / "one.snap", memory)
    data = bytearray((tmp_path / "one.snap").read_bytes())
    data[-1] ^= 1
    (tmp_path / "one.snap").write_bytes(data)

    with pytest.raises(UsageError, match="its memory is damaged"):
        packed(tmp_path / "one.snap")


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_unpack_refuses_a_truncated_file(tmp_path: Path, memory: GuestMemory, cut: int) -> None:
    save(tmp_path / "one.snap", memory)
    data = packed(tmp_path / "one.snap")[:cut]

    with pytest.raises(UsageError, match=r"in\.zst: damaged, or not packed"):
        unpack(io.BytesIO(data), "in.zst", tmp_path / "two")

    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.95])
def test_unpack_refuses_a_changed_file(tmp_path: Path, memory: GuestMemory, part: float) -> None:
    save(tmp_path / "one.snap", memory)
    data = bytearray(packed(tmp_path / "one.snap"))
    data[int(len(data) * part)] ^= 4

    with pytest.raises(UsageError, match=r"in\.zst"):
        unpack(io.BytesIO(data), "in.zst", tmp_path / "two")

    assert [path.name for path in tmp_path.iterdir()] == ["one.snap"]


def repacked(tmp_path: Path, data: bytes) -> io.BytesIO:
    """Return any bytes packed by the same library."""
    from pyvmm.boot.zstd import compress

    return io.BytesIO(b"".join(compress([data])))


def test_unpack_refuses_more_data_than_the_first_page_says(
    tmp_path: Path, memory: GuestMemory
) -> None:
    save(tmp_path / "one.snap", memory)
    data = (tmp_path / "one.snap").read_bytes()

    with pytest.raises(UsageError, match=rf"longer than the {len(data)} bytes"):
        unpack(repacked(tmp_path, data + bytes(1 << 20)), "in.zst", tmp_path / "two")


def test_unpack_refuses_a_packed_file_that_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in\.zst: not a pyvmm snapshot"):
        unpack(repacked(tmp_path, b"text " * 4000), "in.zst", tmp_path / "two")


def test_unpack_refuses_an_incremental_snapshot(child: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it needs a parent"):
        unpack(repacked(tmp_path, child.read_bytes()), "in.zst", tmp_path / "two")


def test_failed_unpack_leaves_the_old_file(tmp_path: Path, memory: GuestMemory) -> None:
    (tmp_path / "two").write_bytes(b"old")

    with pytest.raises(VmmError):
        unpack(io.BytesIO(b"rubbish"), "in.zst", tmp_path / "two")

    assert (tmp_path / "two").read_bytes() == b"old"


def test_unpack_reports_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    with (
        Path("/proc/self/mem").open("rb") as source,  # no memory at address 0: EIO
        pytest.raises(UsageError) as caught,
    ):
        unpack(source, "in.zst", tmp_path / "two")

    assert caught.value.message == "in.zst: cannot be read: Input/output error"
    assert caught.value.hint is None
    assert not [*tmp_path.iterdir()]
