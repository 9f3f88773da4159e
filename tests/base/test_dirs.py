"""The directories: a cached one is complete or absent, whatever interrupts its build."""

from __future__ import annotations

import errno
import os
import pwd
import signal
import threading
from pathlib import Path

import pytest

from pyvmm.base import dirs
from pyvmm.base.dirs import cache_dir, cached, locked, runtime_dir, try_lock
from pyvmm.errors import HostError
from tests.host.conftest import python, wait_for

pytestmark = pytest.mark.usefixtures("own")

# Builds slowly and logs it; the arguments are the path and the log.
BUILDER = """
import sys, time
from pathlib import Path
from pyvmm.base.dirs import cached

def build(into):
    (into / "half").touch()
    with open(sys.argv[2], "a") as log:
        log.write("building\\n")
    time.sleep(float(sys.argv[3]))
    (into / "whole").touch()

cached(Path(sys.argv[1]), build)
"""


def fill(into: Path) -> None:
    (into / "whole").touch()


def read(path: Path) -> None:
    path.read_bytes()


def contents(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if not p.name.endswith(".lock"))


def test_build_happens_once(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        raise AssertionError("built again")

    made = cached(tmp_path / "tree", fill)
    again = cached(tmp_path / "tree", fail)

    assert made == again == tmp_path / "tree"
    assert contents(made) == ["whole"]
    assert made.stat().st_mode & 0o777 == 0o755


def test_complete_directory_is_renamed_not_copied(tmp_path: Path) -> None:
    built: list[int] = []

    made = cached(tmp_path / "tree", lambda into: built.append(into.stat().st_ino))

    assert [made.stat().st_ino] == built


def test_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").touch()
        raise HostError("no such package")

    with pytest.raises(HostError, match="no such package"):
        cached(tmp_path / "tree", fail)

    assert contents(tmp_path) == []


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(into: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "tree", interrupt)

    assert contents(tmp_path) == []


def test_killed_build_is_incomplete_and_removed_by_the_next(tmp_path: Path) -> None:
    place, log = tmp_path / "cache/tree", tmp_path / "log"
    with python(BUILDER, str(place), str(log), "60") as builder:
        wait_for(log.exists)
        builder.kill()
    left = contents(place.parent)
    assert not place.exists()
    assert len(left) == 1
    assert left[0].startswith(".tree.tmp-")

    cached(place, fill)

    assert contents(place.parent) == ["tree"]
    assert contents(place) == ["whole"]


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    place, log = tmp_path / "cache/tree", tmp_path / "log"

    builders = [python(BUILDER, str(place), str(log), "0.3") for _ in range(2)]
    codes = []
    for builder in builders:
        with builder:
            codes.append(builder.wait())

    assert codes == [0, 0]
    assert log.read_text() == "building\n"
    assert contents(place) == ["half", "whole"]


def test_full_disk_is_a_host_error_with_the_path(tmp_path: Path) -> None:
    def overflow(into: Path) -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(HostError) as caught:
        cached(tmp_path / "tree", overflow)

    assert caught.value.message == (
        f"cannot fill the cache at {tmp_path}/tree: {os.strerror(errno.ENOSPC)}"
    )
    assert "XDG_CACHE_HOME" in (caught.value.hint or "")
    assert contents(tmp_path) == []


def test_missing_package_file_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        cached(tmp_path / "tree", lambda into: read(dirs.PACKAGE / "host/none.sh"))

    assert caught.value.message == (
        f"pyvmm's installation at {dirs.PACKAGE} lacks host/none.sh: {os.strerror(errno.ENOENT)}"
    )
    assert caught.value.hint == "install pyvmm again"
    assert contents(tmp_path) == []


def test_missing_guest_in_a_clone_hints_at_make() -> None:
    missing = FileNotFoundError(errno.ENOENT, "absent", str(dirs.PACKAGE / "guests/none"))

    error = dirs.missing_part(missing)

    assert error is not None
    assert error.hint == "make guests"


@pytest.mark.parametrize(
    ("name", "blamed"),
    [("/nowhere/qemu", True), ("make", True), ("{0}/trees/a/b", False), ("{0}", False),
     ("{1}", False), ("/", False)],
)  # fmt: skip
def test_error_is_reported_for_the_file_it_names(name: str, blamed: bool, tmp_path: Path) -> None:
    about = name.format(cache_dir(), tmp_path)

    def fail(into: Path) -> None:
        raise PermissionError(errno.EACCES, "no", about)

    with pytest.raises(HostError) as caught:
        cached(tmp_path / "tree", fail)

    assert (caught.value.hint is None) == blamed
    assert (f": {about}: no" in caught.value.message) == blamed


def test_cache_that_cannot_be_made_is_a_host_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.raises(HostError, match=r"cannot make .*/file/pyvmm: Not a directory"):
        cache_dir()


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_cache_ignores_a_relative_directory_in_the_variable(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert cache_dir("trees") == tmp_path / ".cache/pyvmm/trees"


@pytest.mark.parametrize("home", ["", "relative", None])
def test_cache_is_in_the_users_home_when_home_is_no_path(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {os.getuid(): entry}.__getitem__)
    monkeypatch.delenv("XDG_CACHE_HOME")
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)

    assert cache_dir() == tmp_path / ".cache" / "pyvmm"


def test_cache_of_a_user_without_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", dict[int, object]().__getitem__)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")

    with pytest.raises(HostError, match=f"user {os.getuid()} has no home directory") as caught:
        cache_dir()

    assert "HOME" in (caught.value.hint or "")


def test_runtime_directory_is_private(own: Path) -> None:
    path = runtime_dir()

    assert path == own / "runtime/pyvmm"
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("value", ["", "/nowhere/at/all", "runtime"])
def test_runtime_directory_falls_back_to_tmp(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.setattr(dirs, "_tmp_runtime_dir", lambda: tmp_path / "tmp-pyvmm")

    assert runtime_dir() == tmp_path / "tmp-pyvmm"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o755, 0o1777])
def test_open_runtime_directory_is_made_private(mode: int) -> None:
    (runtime_dir("vms") / "it.lock").touch()
    runtime_dir().chmod(mode)

    assert runtime_dir().stat().st_mode & 0o7777 == 0o700
    assert contents(runtime_dir("vms")) == []


def test_directory_below_the_runtime_directory_is_private() -> None:
    path = runtime_dir("vms")
    assert path == runtime_dir() / "vms"
    path.chmod(0o755)

    assert runtime_dir("vms").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of others")
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_runtime_directory_with_foreign_files_is_refused(kind: str) -> None:
    gift = runtime_dir("vms") / "gift"
    match kind:
        case "file":
            gift.touch()
        case "link":
            gift.symlink_to("/etc")
        case _:
            gift.mkdir()
    os.lchown(gift, 1, 1)
    runtime_dir().chmod(0o777)

    for _ in range(2):  # a check must not change it
        with pytest.raises(
            HostError, match=r"other users could write to .*, and .*/vms/gift is not yours"
        ):
            runtime_dir()


def test_lock_does_not_make_its_directory() -> None:
    place = runtime_dir()
    place.rmdir()

    with pytest.raises(FileNotFoundError), locked(place / "it.start"):
        pass


def test_runtime_directory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = runtime_dir().stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)

    with pytest.raises(HostError, match="not a directory of yours alone"):
        runtime_dir()


def test_runtime_directory_that_is_a_link_is_refused(own: Path, tmp_path: Path) -> None:
    (own / "runtime/pyvmm").symlink_to(tmp_path)
    tmp_path.chmod(0o700)

    with pytest.raises(HostError, match="not a directory of yours alone"):
        runtime_dir()


def test_locked_waits_for_the_lock(tmp_path: Path) -> None:
    order = []

    def wait() -> None:
        with locked(tmp_path / "lock"):
            order.append("second")

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()

    assert order == ["first", "second"]


def test_try_lock_returns_none_for_a_held_lock(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from pyvmm.base.dirs import try_lock\n"
    code += "try_lock(Path(sys.argv[1])); print('mine', flush=True); time.sleep(600)"
    with python(code, str(tmp_path / "lock")) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()

        assert try_lock(tmp_path / "lock") is None

        owner.send_signal(signal.SIGKILL)
        owner.wait()
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    os.close(lock)


def test_remove_cache_also_removes_an_interrupted_removal() -> None:
    place = cached(cache_dir() / "thing", fill)
    left = cache_dir().parent / ".pyvmm.gone-1/half"
    left.mkdir(parents=True)

    removed = dirs.remove_cache()

    assert removed == place.parent
    assert list(removed.parent.iterdir()) == []


def test_remove_cache_renames_the_cache_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = cached(cache_dir() / "thing", fill)
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: None)

    dirs.remove_cache()

    assert not place.exists()
    assert not place.parent.exists()
