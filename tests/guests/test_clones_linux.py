"""Linux notices that it is a clone, and then has random numbers of its own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import linux
from tests.linux import PROMPT, Session

pytestmark = [pytest.mark.e2e, pytest.mark.matrix, pytest.mark.timeout(3600)]

CLONES = 100
LINE = re.compile(r"^(\S+): uuid ([0-9a-f]{8}-[0-9a-f-]{27}) forks ([0-9]+)$", re.MULTILINE)
# Linux logs "crng reseeded due to virtual machine fork": drivers/char/random.c,
# add_vmfork_randomness()
LOOP = (
    b"while :; do echo uuid $(cat /proc/sys/kernel/random/uuid)"
    b" forks $(dmesg | grep -c 'virtual machine fork'); usleep 100000; done\n"
)
WARNING = "does not use its VM generation ID"


def clones(
    pyvmm_cmd: list[str], tmp_path: Path, version: str, count: int, *options: str
) -> tuple[dict[str, list[tuple[str, int]]], str]:
    """Return the UUIDs of each clone of a Linux guest, the reseeds before each, and the messages.

    A clone's first UUID may be from before the save.
    """
    initrd, file = tmp_path / "initrd", tmp_path / "linux.snap"
    initrd.write_bytes(linux.initramfs())
    command = [*pyvmm_cmd, "run", "-c", "1", "-m", "128", "-pquiet", "-i", str(initrd),
               "--name", "original", *options, str(linux.image(version))]  # fmt: skip
    with Session(command) as guest:
        guest.wait_for(PROMPT)
        guest.type(LOOP)
        guest.wait_for(b"forks 0")
        subprocess.run([*pyvmm_cmd, "save", "original", str(file)], check=True)
        guest.end()
    restore = ["restore", str(file), "--memory=lazy", f"--count={count}", "--timeout=60"]
    done = subprocess.run([*pyvmm_cmd, *restore], capture_output=True, text=True)
    found: dict[str, list[tuple[str, int]]] = {}
    for name, uuid, forks in LINE.findall(done.stdout):
        found.setdefault(name, []).append((uuid, int(forks)))
    assert len(found) == count, done.stdout[-2000:] + done.stderr
    assert all(len(lines) > 1 for lines in found.values()), found
    return {name: lines[1:] for name, lines in found.items()}, done.stderr


def test_hundred_clones_reseed_and_have_a_hundred_uuids(
    pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    found, said = clones(pyvmm_cmd, tmp_path, "6.12", CLONES)

    assert {forks for lines in found.values() for _, forks in lines} == {1}
    assert len({lines[0][0] for lines in found.values()}) == CLONES
    assert WARNING not in said


@pytest.mark.parametrize(
    ("version", "options", "words"),
    [("6.12", ["--no-vmgenid"], "has no VM generation ID"), ("6.1", [], WARNING)],
    ids=["no-vmgenid", "older-linux"],
)
def test_clones_that_cannot_notice_do_not_reseed(
    pyvmm_cmd: list[str], tmp_path: Path, version: str, options: list[str], words: str
) -> None:
    found, said = clones(pyvmm_cmd, tmp_path, version, 2, *options)

    assert {forks for lines in found.values() for _, forks in lines} == {0}
    assert words in said
