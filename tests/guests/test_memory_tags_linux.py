"""A Linux guest with memory tags (MTE): its program finds its tags after each kind of snapshot."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host import HostSettings, is_local
from tests import linux
from tests.e2e.conftest import FIRST_S, Pyvmm
from tests.linux import PROMPT, Session
from tests.runtime import own_runtime_dir

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,  # another kernel and another QEMU: 200 MB
    pytest.mark.timeout(2 * FIRST_S),
]

HOST = ("--host-model", "mte")
KERNEL = "6.12"
SOURCE = Path(__file__).with_name("memory-tags.c")
PROGRAMS = Path(__file__).parents[2] / "programs"
RIGHT = b"checked 16384 wrong 0 signal 11"


@pytest.fixture(scope="module")
def pyvmm(pyvmm_cmd: list[str]) -> Iterator[Pyvmm]:
    """Return the command, with a host of this module alone."""
    if is_local(HostSettings()):
        pytest.skip("commands run on this machine's own KVM")
    with own_runtime_dir("mte"):
        command = Pyvmm(pyvmm_cmd)
        started = command("host", "start", *HOST, timeout=FIRST_S)
        assert started.returncode == 0, started.stderr
        yield command


@pytest.fixture(scope="module")
def initrd(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an initramfs with the program."""
    directory = tmp_path_factory.mktemp("mte")
    program = directory / "memory-tags"
    subprocess.run(
        [cross_gcc, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
         "-fno-pie", "-no-pie", "-static", "-nostdlib", "-fno-stack-protector", "-march=armv8-a",
         "-mgeneral-regs-only", "-mno-outline-atomics", "-fno-tree-loop-distribute-patterns",
         f"-I{PROGRAMS}", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-o", program,
         SOURCE, PROGRAMS / "start.S", PROGRAMS / "linux.c"],
        check=True,
    )  # fmt: skip
    path = directory / "initrd"
    path.write_bytes(linux.initramfs({"bin/memory-tags": program.read_bytes()}))
    return path


def check(guest: Session) -> None:
    """Let the program check its tags."""
    guest.type(b"again\n")
    guest.wait_for(RIGHT)


def test_tags_of_a_linux_program_are_in_full_incremental_flat_and_exported_snapshots(
    pyvmm: Pyvmm, initrd: Path, tmp_path: Path
) -> None:
    parent, child, flat, packed, back = (
        tmp_path / name for name in ("parent", "child", "flat", "packed", "back")
    )
    run = ["run", *HOST, "-m", "256", "-i", str(initrd), "-p", "quiet", "--name", "tags"]

    with Session([*pyvmm.command, *run, str(linux.image(KERNEL))]) as guest:
        guest.wait_for(PROMPT)
        guest.type(b"memory-tags\n")
        said = guest.wait_for(b"\n", 60) + guest.wait_for(b"random ") + guest.wait_for(b"\n")
        assert re.search(rb"tagged 16384 random ([1-9]|1[0-5])\r?\n", said)
        check(guest)
        assert pyvmm("save", "tags", str(parent), "--resume").returncode == 0
        guest.type(b"\x03")  # ends the program: its pages are freed, and another's get the tags
        guest.wait_for(PROMPT)
        guest.type(b"memory-tags\n")
        guest.wait_for(b"random ")
        check(guest)
        saved = pyvmm("save", "tags", str(child), "--parent", str(parent))
        assert saved.returncode == 0, saved.stderr

    assert child.stat().st_blocks < parent.stat().st_blocks
    found = json.loads(pyvmm("snapshot", "diff", "--json", str(parent), str(child)).stdout)
    assert sum(change["granules"] for change in found["tags"]) > 0
    assert pyvmm("snapshot", "flatten", str(child), str(flat)).returncode == 0
    assert pyvmm("snapshot", "export", str(child), str(packed)).returncode == 0
    assert pyvmm("snapshot", "import", str(packed), str(back)).returncode == 0

    for path in (parent, child, flat, back):
        with Session([*pyvmm.command, "restore", *HOST, "--trust", str(path)]) as guest:
            check(guest)


def test_guest_with_tags_is_refused_on_a_host_without_them(pyvmm: Pyvmm, tmp_path: Path) -> None:
    saved = tmp_path / "guest.snap"
    pyvmm("run", *HOST, "mte", "-m", "32", "--timeout", "5", "--save-on-exit", str(saved))

    refused = pyvmm("restore", str(saved), timeout=FIRST_S)

    assert refused.returncode == 3
    assert "memory tags" in refused.stderr
