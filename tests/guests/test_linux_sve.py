"""SVE in Linux guests, judged by the kernel's own tests."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import linux, selftests
from tests.linux import PROMPT, Session

# The first command may have to fetch kernels and their source, and to make the emulated host.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STRESS_S = 60  # seconds without output of any child of fp-stress, so the test takes longer
RESULTS = re.compile(r"^# Totals: pass:(\d+) fail:0 xfail:0 xpass:0 skip:0 error:0$", re.MULTILINE)

Guest = Callable[..., Session]


@pytest.fixture
def initrd(fp: Path, tmp_path: Path) -> Path:
    path = tmp_path / "initrd"
    path.write_bytes(linux.initramfs({**linux.virtio_modules("6.1"), **selftests.in_guest(fp)}))
    return path


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["6.1", "7.2"], indirect=True, scope="module")
def test_guests_and_host_stress_sve_at_different_lengths_at_the_same_time(
    host: list[str], pyvmm_cmd: list[str], initrd: Path, fp: Path
) -> None:
    run = [*pyvmm_cmd, "run", *host, "--console=virtio", "-m", "256", "-i", str(initrd), "-pquiet"]
    one = [*run, "-c", "1", "--sve-vls=128,256", str(linux.image("6.1"))]
    other = [*run, "-c", "2", "--sve-vls=128,256,512", str(linux.image("6.1"))]
    longest = [str(fp / "vlset"), "--inherit", "--max", str(fp / "sve-test")]
    with Session(one) as first, Session(other) as second:
        for guest in (first, second):
            guest.wait_for(PROMPT, timeout_s=300)
        beside = subprocess.Popen(
            [*pyvmm_cmd, "host", "exec", *host[2:], "--", *longest], stdout=subprocess.PIPE
        )
        started = time.monotonic()

        for guest in (first, second):
            guest.type(f"(cd /fp && exec ./fp-stress -t {STRESS_S})\n".encode())
        out = [guest.wait_for(PROMPT, timeout_s=600) for guest in (first, second)]
        took = time.monotonic() - started
        beside.terminate()
        out.append(beside.communicate()[0])

    print(f"\nhost {host[-1]}: {took:.0f} s")
    said = [text.decode().replace("\r", "") for text in out]
    for text in said:
        print(*re.findall(r"(?:\S+: )?Terminated by .*|# Totals.*", text), sep="\n")
        assert re.search(r"Terminated by signal 15, no error, iterations=[1-9]\d*", text), text
        assert "ismatch" not in text
    # FPSIMD and each vector length that is a power of two, on each vCPU.
    assert [RESULTS.findall(text) for text in said] == [[str(1 * 3)], [str(2 * 4)], []]
    assert "Vector length:\t2048 bits\n" in said[2]
