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
UUID = re.compile(r"^(\S+): uuid ([0-9a-f]{8}-[0-9a-f-]{27})$", re.MULTILINE)
# After a restore CLOCK_BOOTTIME has advanced by little.  The loop has no other source of entropy.
LOOP = b"while :; do echo uuid $(cat /proc/sys/kernel/random/uuid); usleep 100000; done\n"
WARNING = "does not use its VM generation ID"


def first_uuids(
    pyvmm_cmd: list[str], tmp_path: Path, version: str, count: int, *options: str
) -> tuple[list[str], str]:
    """Return the first UUID that each clone of a Linux guest prints, and the messages."""
    initrd, file = tmp_path / "initrd", tmp_path / "linux.snap"
    initrd.write_bytes(linux.initramfs())
    command = [*pyvmm_cmd, "run", "-c", "1", "-m", "128", "-pquiet", "-i", str(initrd),
               "--name", "original", *options, str(linux.image(version))]  # fmt: skip
    with Session(command) as guest:
        guest.wait_for(PROMPT)
        guest.type(LOOP)
        guest.wait_for(b"uuid")
        subprocess.run([*pyvmm_cmd, "save", "original", str(file)], check=True)
        guest.end()
    done = subprocess.run(
        [*pyvmm_cmd, "restore", str(file), "--count", str(count), "--timeout", "20"],
        capture_output=True,
        text=True,
    )
    first = dict(reversed(UUID.findall(done.stdout)))
    assert len(first) == count, done.stdout[-2000:] + done.stderr
    return list(first.values()), done.stderr


def test_hundred_clones_have_a_hundred_uuids(pyvmm_cmd: list[str], tmp_path: Path) -> None:
    uuids, said = first_uuids(pyvmm_cmd, tmp_path, "6.12", CLONES)

    assert len(set(uuids)) == CLONES
    assert WARNING not in said


@pytest.mark.parametrize(
    ("version", "options", "words"),
    [("6.12", ["--no-vmgenid"], "has no VM generation ID"), ("6.1", [], WARNING)],
    ids=["no-vmgenid", "older-linux"],
)
def test_clones_that_cannot_notice_repeat_themselves(
    pyvmm_cmd: list[str], tmp_path: Path, version: str, options: list[str], words: str
) -> None:
    """Show that the other test can fail, and that the user is told."""
    uuids, said = first_uuids(pyvmm_cmd, tmp_path, version, 4, *options)

    assert len(set(uuids)) < 4
    assert words in said
