"""The user's files that an emulated host cannot see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host.share import hidden, refuse_hidden


@pytest.mark.parametrize(
    "path",
    ["/etc", "/etc/passwd", "/usr", "/usr/lib/x", "/bin/sh", "/lib64/ld.so", "/dev/shm/x",
     "/run/user/0/x", "/proc/self", "/sys/kernel", "/sbin"],
)  # fmt: skip
def test_hidden_is_true_for_the_hosts_own_paths(path: str) -> None:
    assert hidden(Path(path))


@pytest.mark.parametrize(
    "path",
    ["/", "/home/u/x", "/tmp", "/usr/local/bin/x", "/usr/src/linux", "/usr/share", "/root/etc",
     "/mnt/usr/lib", "/etcetera", "/boot/vmlinuz"],
)  # fmt: skip
def test_hidden_is_false_for_the_users_paths(path: str) -> None:
    assert not hidden(Path(path))


@pytest.mark.parametrize("file", ["/etc/hostname", "/etc/nowhere", "/usr/lib/os-release"])
def test_refuse_hidden_refuses_a_file_that_the_host_hides(file: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)

    for name in (Path(file), link):
        with pytest.raises(HostError) as caught:
            refuse_hidden([tmp_path, name])

        real = os.path.realpath(file)
        assert caught.value.message == (
            f"the emulated host has its own /{real.split('/')[1]}: it does not see {real}"
        )
        assert "copy" in (caught.value.hint or "")


@pytest.mark.parametrize("file", ["/dev/null", "/dev/zero", "/etc", "/tmp/nowhere"])
def test_refuse_hidden_accepts_special_and_missing_files(file: str) -> None:
    refuse_hidden([Path(file)])


def test_refuse_hidden_accepts_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    refuse_hidden([tmp_path / "loop"])


def test_refuse_hidden_refuses_a_hidden_current_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir("/usr/lib")

    with pytest.raises(HostError, match="it does not see /usr/lib") as caught:
        refuse_hidden([])

    assert caught.value.hint == "run pyvmm from another directory"


def test_refuse_hidden_refuses_a_removed_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(HostError, match="does not exist any more"):
        refuse_hidden([])

    monkeypatch.chdir(tmp_path)
