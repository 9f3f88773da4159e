"""Daemons of vhost-user devices: Debian's virtiofsd, and programs that are not one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from pyvmm.config import Share
from pyvmm.devices.vhost.user import VhostUser
from pyvmm.errors import HostError, UsageError
from pyvmm.host.parts import tools
from pyvmm.host.progress import Progress
from pyvmm.machine import daemons


@pytest.fixture(scope="module")
def program() -> tuple[str, ...]:
    """Return virtiofsd, whose sandbox needs root or user namespaces."""
    made = subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True)
    if os.geteuid() and made.returncode:
        pytest.skip(f"this machine has no user namespaces for virtiofsd: {made.stderr.strip()}")
    return tools.virtiofsd(Progress(quiet=True)).command


def test_daemon_answers_and_ends_with_its_connection(
    program: tuple[str, ...], tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - only their number
    daemon = daemons.virtiofsd(Share(path=tmp_path, tag="tag", program=program))
    backend = VhostUser(daemon.connection, "virtiofsd")

    assert backend.features >> 32 & 1
    assert not backend.has_ended()
    daemon.close()

    assert daemon.process.returncode is not None
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208 - only their number


def test_end_of_the_daemon_is_seen(program: tuple[str, ...], tmp_path: Path) -> None:
    daemon = daemons.virtiofsd(Share(path=tmp_path, tag="tag", program=program))
    backend = VhostUser(daemon.connection, "virtiofsd")

    daemon.process.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 60
    while not backend.has_ended():
        assert time.monotonic() < deadline
    daemon.close()


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^`devices\.share`=.*/none,tag: there is no such"):
        daemons.virtiofsd(Share(path=tmp_path / "none", tag="tag"))


def test_missing_program_is_refused_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="there is no no-virtiofsd") as caught:
        daemons.virtiofsd(Share(path=tmp_path, tag="tag", program=("no-virtiofsd",)))

    assert "apt-get install virtiofsd" in (caught.value.hint or "")


def test_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x7fELF junk")
    junk.chmod(stat.S_IRWXU)

    with pytest.raises(HostError, match=f"cannot execute {junk}: Exec format error"):
        daemons.virtiofsd(Share(path=tmp_path, tag="tag", program=(str(junk),)))


def test_program_that_is_no_virtiofsd_is_refused(tmp_path: Path) -> None:
    daemon = daemons.virtiofsd(Share(path=tmp_path, tag="tag", program=("true",)))

    with pytest.raises(HostError, match="virtiofsd has ended at GET_FEATURES"):
        VhostUser(daemon.connection, "virtiofsd")

    daemon.close()
