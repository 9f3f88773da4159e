"""The confined QEMU of an emulated host, and the files that commands in it see."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.commands.run import GUESTS
from pyvmm.host.capture import capture
from pyvmm.host.confined import keeper, launch
from pyvmm.host.running import Running, all_running
from pyvmm.host.share import ALL, VARIABLE, Needs
from tests.e2e.conftest import ENOUGH_S, FIRST_S, Done, Pyvmm, message, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

# Attempts on the files of the directory $1; each line is an attempt and whether it succeeded.
ATTEMPTS = """
try() { if sh -c "$2" 2>/dev/null; then echo "$1 done"; else echo "$1 failed"; fi; }
try secret "cat $1/secret"
try read "grep -q image $1/image"
try append "echo x >>$1/image"
try update "echo x >>$1/disk"
try beside "echo x >$1/beside"
try create "echo x >$1/out/new"
try others "ls /run/pyvmm/user/*"
"""


@pytest.fixture
def host(pyvmm: Pyvmm) -> Running:
    """Return the running host, which is confined."""
    if (reason := launch.refusal()) is not None:
        pytest.skip(f"this machine cannot confine QEMU: {reason}")
    pyvmm("host", "start")
    (running,) = all_running()
    return running


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("secret", "image", "disk"):
        (tmp_path / name).write_text(name)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def vm(pyvmm: Pyvmm, host: Running, files: Path) -> Iterator[int]:
    """Run a VM with a disk; yield its process in the host."""
    (files / "disk").write_bytes(bytes(4096))
    with pyvmm.start(
        "run", "exit", "-p", "spin", "--name", "seen", "-d", str(files / "disk")
    ) as process:
        wait_for(lambda: vms(pyvmm), "the VM's start")
        yield int(vms(pyvmm)[0]["pid"])
        pyvmm("stop", "-n", "seen")
        process.wait(ENOUGH_S)


def vms(pyvmm: Pyvmm) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pyvmm("list", "--json").stdout)["vms"]
    return found


def trees(host: Running) -> list[str]:
    share = Path(f"/proc/{host.pid}/root{host.path}") / keeper.SHARE
    return [path.name for path in share.iterdir()]


def test_host_is_confined(pyvmm: Pyvmm, host: Running) -> None:
    (row,) = pyvmm.hosts()

    assert (row["confined"], row["why_unconfined"]) == (True, None)


def test_qemu_sees_no_file_of_the_user_and_has_no_privileges(host: Running, files: Path) -> None:
    root = Path(f"/proc/{host.pid}/root")
    status = dict(line.split(":\t", 1) for line in
                  Path(f"/proc/{host.pid}/status").read_text().splitlines())  # fmt: skip

    assert not (root / files.relative_to("/")).exists()
    assert not (root / "etc").exists()
    assert not (root / "root/.ssh").exists()
    assert int(status["CapEff"], 16) & ~sum(1 << number for number in keeper.CAPABILITIES) == 0
    assert Path(f"/proc/{host.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def test_command_sees_its_files_alone_with_their_access(host: Running, files: Path) -> None:
    needs = Needs(
        reads=(files / "image",), updates=(files / "disk",), creates=(files / "out/new",)
    )  # fmt: skip

    said = capture(host, ["sh", "-c", ATTEMPTS, "sh", str(files)], b"", needs=needs)

    assert dict(line.split() for line in said.decode().splitlines()) == {
        "secret": "failed", "read": "done", "append": "failed", "update": "done",
        "beside": "failed", "create": "done", "others": "failed",
    }  # fmt: skip
    assert (files / "out/new").read_text() == "x\n"
    assert (files / "disk").read_text() == "diskx\n"
    assert trees(host) == []


def test_command_that_needs_no_file_sees_none(host: Running, files: Path) -> None:
    said = capture(host, ["sh", "-c", ATTEMPTS, "sh", str(files)], b"")

    assert [line.split()[1] for line in said.decode().splitlines()] == ["failed"] * 7


def test_exec_sees_all_files(pyvmm: Pyvmm, host: Running, files: Path) -> None:
    done = pyvmm("host", "exec", "--", "cat", str(files / "secret"))

    assert done.stdout == "secret"


def test_commands_find_the_files_that_they_name_in_the_working_directory(
    pyvmm: Pyvmm, host: Running, tmp_path: Path
) -> None:
    (tmp_path / "guest").write_bytes((GUESTS / "exit").read_bytes())
    (tmp_path / "disk").write_bytes(bytes(4096))
    (tmp_path / "link").symlink_to("guest")
    outputs = ("--trace", "run.pftrace", "--dump-dtb", "tree.dtb", "--save-on-exit", "two.snap")

    def here(*words: str) -> Done:
        return pyvmm(*words, cwd=tmp_path)

    with pyvmm.start("run", "./guest", "-p", "spin", "-d", "disk", "--name", "here",
                     cwd=tmp_path) as process:  # fmt: skip
        wait_for(lambda: vms(pyvmm), "the VM's start")
        assert here("save", "here", "one.snap", "--resume").returncode == 0
        assert here("save", "here", "child.snap", "--parent", "one.snap").returncode == 0
        assert process.wait(ENOUGH_S) == 0
    restored = here("restore", "child.snap", "--timeout", "1")
    run = here("run", "link", "-p", "spin", "--timeout", "1", *outputs)
    listed = here("host", "exec", "--", "sh", "-c", "ls")

    assert (restored.returncode, run.returncode) == (124, 124), restored.stderr + run.stderr
    assert listed.stdout.split() == [
        "child.snap", "disk", "guest", "link", "one.snap", "run.pftrace", "tree.dtb", "two.snap",
    ]  # fmt: skip


def test_vm_sees_its_disk_and_no_file_beside_it(vm: int, host: Running, files: Path) -> None:
    look = ["ls", f"/proc/{vm}/root{files}"]

    said = capture(host, look, b"", as_root=True, needs=ALL)

    assert said.split() == [b"disk"]


def test_vm_saves_to_a_directory_that_it_did_not_see(
    pyvmm: Pyvmm, vm: int, host: Running, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    done = pyvmm("save", "seen", str(elsewhere / "a.snap"), "--resume")
    child = pyvmm("save", "seen", str(elsewhere / "b.snap"), "--resume", "--parent",
                  str(elsewhere / "a.snap"))  # fmt: skip

    assert (done.returncode, child.returncode) == (0, 0), done.stderr + child.stderr
    assert sorted(path.name for path in elsewhere.iterdir()) == ["a.snap", "b.snap"]
    assert len(trees(host)) == 1  # the VM's


def test_variable_shows_a_run_all_files(pyvmm: Pyvmm, host: Running, files: Path) -> None:
    environment = {**os.environ, VARIABLE: "all"}
    with pyvmm.start("run", "exit", "-p", "spin", "--name", "all", env=environment) as process:
        wait_for(lambda: vms(pyvmm), "the VM's start")
        look = ["cat", f"/proc/{vms(pyvmm)[0]['pid']}/root{files}/secret"]

        said = capture(host, look, b"", as_root=True, needs=ALL)

        pyvmm("stop", "-n", "all")
        process.wait(ENOUGH_S)
    assert said == b"secret"


def test_variable_with_another_value_is_refused(pyvmm: Pyvmm, host: Running) -> None:
    done = pyvmm("run", "exit", env={**os.environ, VARIABLE: "some"})

    assert message(done) == f"pyvmm: {VARIABLE}=some: not one of named, all\n"
    assert done.returncode == 2


@pytest.mark.usefixtures("host")
def test_files_of_a_killed_command_are_seen_for_some_time(pyvmm: Pyvmm, files: Path) -> None:
    """The keeper's test waits for their end."""
    saved = files / "out/at-the-end.snap"
    with pyvmm.start("run", "exit", "-p", "spin", "--save-on-exit", str(saved)) as process:
        wait_for(lambda: vms(pyvmm), "the VM's start")

        process.send_signal(signal.SIGKILL)

        wait_for(saved.exists, "the snapshot of the guest that lost its client")
