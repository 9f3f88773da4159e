"""Sockets between a guest and its host; the judges are Linux's drivers on both sides."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.host.settings import KERNEL_SUITES
from tests import linux
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels, and to make and boot the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SOURCE = Path(__file__).with_name("vsock.c")
PORT = 1234

# Runs in the emulated host, whose other programs have no AF_VSOCK.
CLIENT = """
import hashlib, os, socket, sys, threading

cid, port, size, times = map(int, sys.argv[1:])
for _ in range(times):
    with socket.socket(socket.AF_VSOCK) as peer:
        peer.settimeout(300)
        peer.connect((cid, port))
        sent, back = os.urandom(size), hashlib.sha256()

        def receive():
            while data := peer.recv(1 << 16):
                back.update(data)

        reader = threading.Thread(target=receive)
        reader.start()
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        reader.join()
        if back.digest() != hashlib.sha256(sent).digest():
            sys.exit("other bytes came back")
print("equal")
"""

Boot = Callable[..., Session]


@pytest.fixture(scope="module")
def vsock(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the guest's program, built."""
    out = tmp_path_factory.mktemp("vsock") / "vsock"
    command = [str(cross_gcc), "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(out)]
    subprocess.run([*command, str(SOURCE)], check=True)
    return out.read_bytes()


@pytest.fixture
def boot(pyvmm_cmd: list[str], tmp_path: Path, vsock: bytes) -> Boot:
    """Boot a kernel with a CID, and let it echo."""

    def boot_kernel(version: str, cid: int, *options: str) -> Session:
        drivers = ("virtio_mmio", "virtio_console", "vmw_vsock_virtio_transport")
        initrd = tmp_path / "initrd"
        files = {**linux.modules(version, *drivers), "bin/vsock": vsock}
        initrd.write_bytes(linux.initramfs(files))
        command = [*pyvmm_cmd, "run", "-i", str(initrd), "-m", "256", "-pquiet", f"--vsock={cid}"]
        guest = Session([*command, *options, str(linux.image(version))])
        guest.wait_for(PROMPT)
        assert guest.shell("vsock cid") == f"cid {cid}"
        guest.type(b"vsock echo %d &\n" % PORT)
        guest.wait_for(b"listening")
        return guest

    return boot_kernel


@pytest.fixture
def client(pyvmm_cmd: list[str], tmp_path: Path) -> Callable[..., str]:
    """Connect the host to a guest, and check the echo."""
    script = tmp_path / "client.py"
    script.write_text(CLIENT)

    def connect(cid: int, size: int, times: int = 1, host: tuple[str, ...] = ()) -> str:
        command = [*pyvmm_cmd, "host", "exec", *host, "python3", str(script)]
        numbers = map(str, (cid, PORT, size, times))
        done = subprocess.run([*command, *numbers], capture_output=True, text=True)
        return done.stdout + done.stderr

    return connect


def cid_of_this_test() -> int:
    """Return a CID that no other guest of the host has."""
    return 3 + os.getpid()


def test_host_and_guest_exchange_a_mebibyte(boot: Boot, client: Callable[..., str]) -> None:
    cid = cid_of_this_test()
    with boot("6.1", cid) as guest:
        assert client(cid, 1 << 20) == "equal\n"
        assert client(cid, 1, times=20) == "equal\n"
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True)
@pytest.mark.parametrize("version", list(KERNEL_SUITES))
def test_sixteen_mebibytes_and_a_thousand_connections(
    host: list[str], version: str, boot: Boot, client: Callable[..., str]
) -> None:
    where = tuple(host[2:])
    with boot(version, cid_of_this_test(), *host):
        assert client(cid_of_this_test(), 16 << 20, host=where) == "equal\n"
        assert client(cid_of_this_test(), 100, times=1000, host=where) == "equal\n"


@pytest.mark.matrix
def test_saved_guest_is_reached_again(
    boot: Boot, client: Callable[..., str], pyvmm_cmd: list[str], tmp_path: Path
) -> None:
    cid, name, file = cid_of_this_test(), f"vsock-{os.getpid()}", tmp_path / "guest.snap"
    with boot("6.1", cid, f"--name={name}"):
        subprocess.run([*pyvmm_cmd, "save", name, str(file)], check=True)
    with Session([*pyvmm_cmd, "restore", f"--name={name}", str(file)]) as guest:
        deadline = time.monotonic() + 120
        while (said := client(cid, 1 << 20)) != "equal\n":
            assert time.monotonic() < deadline, said
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0
