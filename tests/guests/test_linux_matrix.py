"""Every guest kernel on hosts of every supported kernel, on either console, boots to its shell.

Each combination has other vector lengths, and the kernel's own test checks them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from pyvmm.host.settings import KERNEL_SUITES
from tests import linux, selftests
from tests.linux import PROMPT, Session

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("host", ["6.1", "6.12", "7.2"], indirect=True, scope="module"),
]


class Case(NamedTuple):
    """A console, a number of vCPUs, and SVE options with the resulting lengths."""

    console: str
    vcpus: int
    sve: str
    lengths: list[int]


CASES = [
    Case("serial", 1, "--no-sve", []),
    Case("serial", 4, "--sve-vls=128,256", [128, 256]),
    Case("virtio", 1, "--sve-vls=128", [128]),
    Case("virtio", 4, "--sve", [128, 256, 512, 1024, 2048]),  # all those of the default CPU
]


@pytest.fixture(scope="module")
def initrds(fp: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an initramfs for each guest kernel, with the console's modules and the tests."""
    directory = tmp_path_factory.mktemp("initrds")
    for version in KERNEL_SUITES:
        files = {**linux.virtio_modules(version), **selftests.in_guest(fp)}
        (directory / version).write_bytes(linux.initramfs(files))
    return {version: directory / version for version in KERNEL_SUITES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.console}-{case.vcpus}")
@pytest.mark.parametrize("version", KERNEL_SUITES)
def test_linux_boots_to_its_shell_with_the_requested_vector_lengths(
    host: list[str], version: str, case: Case, pyvmm_cmd: list[str], initrds: dict[str, Path]
) -> None:
    options = ["-c", str(case.vcpus), "-m", "256", f"--console={case.console}", case.sve]
    started = time.monotonic()

    with Session(
        [*pyvmm_cmd, "run", *host, *options, "-i", str(initrds[version]), "-pquiet",
         str(linux.image(version))]
    ) as guest:  # fmt: skip
        guest.wait_for(PROMPT, timeout_s=600)
        shell_s = time.monotonic() - started

        assert guest.shell("uname -r").startswith(version)
        assert guest.shell("nproc") == str(case.vcpus)
        assert guest.shell("grep -cw sve /proc/cpuinfo") == str(case.vcpus if case.lengths else 0)
        assert selftests.probed(guest.shell("/fp/sve-probe-vls")) == case.lengths
        guest.type(b"poweroff -f\n")
        assert guest.end() == 0

    print(f"\nhost {host[-1]}, guest {version}, {case.console}, {case.vcpus} vCPUs, {case.sve}: "
          f"shell in {shell_s:.1f} s, done in {time.monotonic() - started:.1f} s")  # fmt: skip
