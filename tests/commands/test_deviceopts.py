"""The options for devices: what they accept and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.commands._deviceopts import read_disk, read_pmem, read_share
from pyvmm.config import Config, Disk, Hotplug, Pmem, Share, Vsock
from pyvmm.errors import UsageError
from pyvmm.layout import MIB

HERE = Path.cwd()


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("root.img", Disk(path=HERE / "root.img")),
        ("root.img,ro", Disk(path=HERE / "root.img", read_only=True)),
        ("/dev/sdz,direct", Disk(path=Path("/dev/sdz"), direct=True)),
        ("a,direct,ro", Disk(path=HERE / "a", read_only=True, direct=True)),
    ],
)
def test_disk_option_reads_file_and_flags(text: str, disk: Disk) -> None:
    assert read_disk(text) == disk


@pytest.mark.parametrize("text", ["", ",ro", "a,", "a,rw", "a,ro,x"])
def test_malformed_disk_option_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-d "):
        read_disk(text)


def test_pmem_option_reads_file_and_ro() -> None:
    assert read_pmem("/a,ro") == Pmem(path=Path("/a"), read_only=True)
    with pytest.raises(UsageError, match=r"^--pmem /a,direct: 'direct' is not one of ro"):
        read_pmem("/a,direct")


def test_share_option_reads_directory_tag_and_ro(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_share("src,tag") == Share(path=HERE / "src", tag="tag")
    assert read_share("/src,tag,ro") == Share(path=Path("/src"), tag="tag", read_only=True)
    monkeypatch.setenv("PYVMM_VIRTIOFSD", "'/a loader' /virtiofsd")
    assert read_share("/src,tag").program == ("/a loader", "/virtiofsd")


@pytest.mark.parametrize("text", ["", "a", ",tag", "a,", "a,tag,rw", "a,tag,ro,x", "a," + 37 * "t"])
def test_malformed_share_option_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^(--share |`devices\.share`=)"):
        read_share(text)


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFF_FFFF, 1 << 32])
def test_cid_that_no_guest_can_have_is_refused(cid: int) -> None:
    with pytest.raises(UsageError, match=rf"^`devices\.vsock`={cid}: guests have CIDs from 3"):
        Vsock(cid=cid)


@pytest.mark.parametrize("device", [Vsock(cid=3), Share(path=Path("/src"), tag="tag")])
def test_device_with_a_vhost_back_end_is_refused_beside_pluggable_memory(
    device: Vsock | Share,
) -> None:
    with pytest.raises(UsageError, match=r"`devices\.hotplug`: vhost would have the memory"):
        Config(image=Path("guest"), devices=(Hotplug(size=64 * MIB), device))


def test_shared_directory_is_refused_on_huge_pages() -> None:
    share = Share(path=Path("/src"), tag="tag")
    with pytest.raises(UsageError, match="`hugetlbfs` do not work together"):
        Config(image=Path("guest"), devices=(share,), hugetlbfs=Path("/huge"))


@pytest.mark.parametrize("size", [0, 1000, 2 * MIB + 4096])
def test_pmem_refuses_a_size_that_is_no_multiple_of_2_mib(tmp_path: Path, size: int) -> None:
    path = tmp_path / "pmem"
    path.write_bytes(bytes(size))

    with pytest.raises(UsageError, match="2 MiB") as caught:
        Pmem(path=path).window_size()
    assert caught.value.hint == f"truncate -s %2M {path} rounds the size up"


def test_pmem_is_as_large_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pmem"
    with path.open("wb") as file:
        file.truncate(4 * MIB)

    assert Pmem(path=path).window_size() == 4 * MIB


def test_missing_pmem_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Pmem(path=tmp_path / "none").window_size()
