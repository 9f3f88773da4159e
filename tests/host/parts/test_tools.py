"""The programs that make a host, and their wrappers."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host.parts import tools
from pyvmm.host.parts.debian import Package, Suite
from pyvmm.host.parts.tools import Tool, write_wrapper
from pyvmm.host.parts.trees import PACKAGES, Offer
from pyvmm.host.progress import Progress
from tests.host.conftest import list_packages
from tests.tools import find, gcc

QUIET = Progress(quiet=True)
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('MARK')]))"


def test_tool_runs_with_its_environment() -> None:
    tool = Tool((sys.executable, "-c", SHOW), {"MARK": "here"})

    assert tool.run(["a b"]) == '[["a b"], "here"]\n'


def test_tool_reports_its_output_when_it_fails() -> None:
    tool = Tool((sys.executable, "-c", "import sys; sys.exit('out of luck')"))

    with pytest.raises(HostError, match=r"out of luck$"):
        tool.run([])


def test_wrapper_passes_unusual_arguments(tmp_path: Path) -> None:
    odd = """it's "here" $HOME `x` \\ """
    tool = Tool((sys.executable, "-c", SHOW, odd), {"MARK": odd})

    write_wrapper(tool, tmp_path / "deep/my tool")

    done = subprocess.run([tmp_path / "deep/my tool", "a b", "", "*"], capture_output=True)
    assert done.stdout == (tool.run(["a b", "", "*"])).encode()


def test_wrapper_returns_the_exit_code(tmp_path: Path) -> None:
    write_wrapper(Tool((sys.executable, "-c", "raise SystemExit(7)")), tmp_path / "tool")

    assert subprocess.run([tmp_path / "tool"]).returncode == 7


def test_unchanged_wrapper_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    write_wrapper(Tool(("true",)), path)
    before = path.stat()

    write_wrapper(Tool(("true",)), path)
    same = path.stat()
    write_wrapper(Tool(("false",)), path)

    assert (same.st_ino, same.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.stat().st_ino != before.st_ino
    assert [p.name for p in tmp_path.iterdir()] == ["tool"]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", "7.2.22"),
        ("QEMU emulator version 11.1.3\n", "11.1.3"),
    ],
)
def test_qemu_version_is_read_from_its_output(said: str, version: str) -> None:
    assert tools.qemu_version(Tool(("echo", said))) == version


def test_qemu_version_refuses_another_program(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is not a qemu-system-aarch64"):
        tools.qemu_version(Tool(("echo",)))
    with pytest.raises(HostError, match="nothing: No such file"):
        tools.qemu_version(Tool((str(tmp_path / "nothing"),)))


def test_qemu_at_a_path_needs_no_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu").touch()
    monkeypatch.chdir(tmp_path)

    assert tools.qemu("./qemu", QUIET).command == (str(tmp_path / "qemu"),)


class FakeSuite(Suite):
    """A suite whose packages are three empty directories."""

    def closure(self, names: object) -> list[Package]:
        return [Package(name, "amd64", "1", 1) for name in ("wanted", "library", "debconf")]

    def unpack(self, packages: Iterable[Package], into: Path, progress: Progress) -> None:
        assert isinstance(packages, list)
        for package in packages:
            (into / package.name).mkdir()
        list_packages(packages, into)


class QemuSuite(Suite):
    """A suite whose QEMU is a script, with a loader that runs it."""

    def closure(self, names: object) -> list[Package]:
        assert names == ["qemu-system-arm:arm64=1:7.2+dfsg-7"]
        return [Package("qemu-system-arm", "arm64", "1:7.2+dfsg-7", 1)]

    def unpack(self, packages: Iterable[Package], into: Path, progress: Progress) -> None:
        list_packages(packages, into)
        (into / "lib").mkdir()
        loader = into / "lib" / tools.LOADERS[platform.machine()]
        loader.write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
        loader.chmod(0o755)


def test_unpacked_qemu_has_the_version_that_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "machine_arch", lambda: "arm64")
    offer = Offer("qemu-system-arm", "1:7.2+dfsg-7")

    version = tools._unpack_qemu(QemuSuite("bookworm"), offer, tmp_path, progress=QUIET)

    assert version == "7.2.22"
    assert (tmp_path / PACKAGES).read_text() == "qemu-system-arm:arm64=1:7.2+dfsg-7\n"


def test_main_writes_a_wrapper_for_each_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", "/opt/bin/{}".format)

    assert tools.main([str(tmp_path), "dtc", "tmux"], find) == 0

    found = {path.name: path.read_text().split()[-2] for path in tmp_path.iterdir()}
    assert found == {"dtc": "/opt/bin/dtc", "tmux": "/opt/bin/tmux"}


def test_compiler_without_headers_is_replaced_by_one_of_debian(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = tmp_path / "installed/gcc"
    installed.parent.mkdir()
    installed.write_text("")
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(installed.parent))
    monkeypatch.setattr("tests.tools.tree", lambda *_: tmp_path / "tree")
    headers, tree = tmp_path / "include", tmp_path / "tree"

    command = gcc(QUIET, headers).command
    assert command[:3] == (f"{tree}/usr/bin/gcc", f"-B{tree}/usr/bin/", f"--sysroot={tree}")

    for name in ("stdlib.h", "linux/kvm.h"):
        (headers / name).parent.mkdir(parents=True, exist_ok=True)
        (headers / name).write_text("")
    assert gcc(QUIET, headers).command == (str(installed),)


def test_tree_has_the_packages_without_unneeded_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools, "Suite", FakeSuite)

    made = tools.tree("qemu", "bookworm", ["qemu-system-arm"], QUIET)

    assert sorted(p.name for p in made.iterdir()) == [".packages", "library", "wanted"]
    assert (made / ".packages").read_text() == "wanted:amd64=1\nlibrary:amd64=1\n"


def test_tree_depends_on_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "Suite", FakeSuite)

    one = tools.tree("qemu", "bookworm", ["a"], QUIET)

    assert tools.tree("qemu", "bookworm", ["a"], QUIET) == one
    assert tools.tree("qemu", "trixie", ["a"], QUIET) != one
    assert tools.tree("qemu", "bookworm", ["a", "b"], QUIET) != one
    assert tools.tree("qemu", "bookworm", ["a"], QUIET, drop=frozenset()) != one


def test_trees_program_runs_through_the_trees_own_loader(tmp_path: Path) -> None:
    triplet, loader = tools.TRIPLETS[platform.machine()], tools.LOADERS[platform.machine()]
    libraries = tmp_path / "usr/lib" / triplet
    libraries.mkdir(parents=True)
    for file in (libraries / loader, libraries / "libc.so.6"):
        file.touch()

    command = tools.through_loader(tmp_path, "usr/bin/dtc", "-q")

    path = f"{tmp_path}/lib/{triplet}:{libraries}"
    program = str(tmp_path / "usr/bin/dtc")
    assert command == (str(libraries / loader), "--library-path", path, program, "-q")


def test_through_loader_refuses_a_tree_without_a_loader(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="holds no ld-linux") as caught:
        tools.through_loader(tmp_path, "usr/bin/dtc")

    assert caught.value.hint == f"rm -r {tmp_path}"
