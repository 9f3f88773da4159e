"""The user's files at their own paths: which ones the emulated host does not see."""

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
def test_paths_the_emulated_host_has_itself_are_hidden(path: str) -> None:
    assert hidden(Path(path))


@pytest.mark.parametrize(
    "path",
    ["/", "/home/u/x", "/tmp", "/usr/local/bin/x", "/usr/src/linux", "/usr/share", "/root/etc",
     "/mnt/usr/lib", "/etcetera", "/boot/vmlinuz"],
)  # fmt: skip
def test_other_paths_are_the_users(path: str) -> None:
    assert not hidden(Path(path))


@pytest.mark.parametrize("file", ["/etc/hostname", "/etc/nowhere", "/usr/lib/os-release"])
def test_file_the_command_would_not_see_is_refused(file: str, tmp_path: Path) -> None:
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
def test_what_the_emulated_host_has_as_well_is_not(file: str) -> None:
    refuse_hidden([Path(file)])


def test_loop_of_links_is_not_this_checks_business(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    refuse_hidden([tmp_path / "loop"])


def test_current_directory_the_command_would_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir("/usr/lib")

    with pytest.raises(HostError, match="it does not see /usr/lib") as caught:
        refuse_hidden([])

    assert caught.value.hint == "run pyvmm from another directory"


def test_current_directory_that_was_removed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(HostError, match="does not exist any more"):
        refuse_hidden([])

    monkeypatch.chdir(tmp_path)
