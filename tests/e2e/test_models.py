"""Ready-made hosts: one small case for each, and what each one refuses before there is a VM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.host import HostSettings, is_local
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S)]


@pytest.fixture(autouse=True)
def emulated_only() -> None:
    """Skip on a machine that runs guests itself."""
    if is_local(HostSettings()):
        pytest.skip("commands run on this machine's own KVM")


@pytest.fixture(scope="module", autouse=True)
def stopped(pyvmm: Pyvmm) -> Iterator[None]:
    """Stop these hosts at the end: other tests expect the default one alone."""
    yield
    for model in ("gicv2", "mte", "nested"):
        pyvmm("host", "stop", "--host-model", model)


def test_gicv2_host_runs_saves_and_restores_a_guest(pyvmm: Pyvmm, tmp_path: Path) -> None:
    host = ("--host-model", "gicv2")
    saved = tmp_path / "guest.snap"
    guest = ("sve-snapshot", "-c", "3", "-m", "16", "-p", "patience=60")

    begun = pyvmm("run", *host, *guest, "--timeout", "4", "--save-on-exit", str(saved),
                  timeout=FIRST_S)  # fmt: skip
    restored = pyvmm("restore", *host, str(saved), input="sq")

    assert begun.returncode == 124, begun.stderr
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "failures=0" in restored.stdout
    shown = json.loads(pyvmm("snapshot", "show", "--json", str(saved)).stdout)
    assert shown["state"]["gic"]["kind"] == "gicv2"


@pytest.mark.matrix  # another kernel and another QEMU: 200 MB
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_mte_host_runs_saves_and_restores_a_guest_with_its_tags(
    kernel: str, pyvmm: Pyvmm, tmp_path: Path
) -> None:
    host = ("--host-model", "mte", "--host-kernel", kernel)
    saved = tmp_path / "guest.snap"
    right = "16384 granules have their tags, and a wrong tag is a fault"

    begun = pyvmm("run", *host, "mte", "-m", "32", "--timeout", "5", "--save-on-exit", str(saved),
                  timeout=FIRST_S)  # fmt: skip
    restored = pyvmm("restore", *host, str(saved), input="q")
    lazily = pyvmm("restore", *host, "--memory", "lazy", str(saved), input="q")

    assert (begun.returncode, begun.stdout.strip()) == (124, right), begun.stderr
    assert (restored.returncode, restored.stdout.strip()) == (0, right), restored.stderr
    assert lazily.returncode == 2
    assert "its memory cannot be mapped from a file" in message(lazily)
    assert "ram-tags" in pyvmm("snapshot", "show", str(saved)).stdout
    pyvmm("host", "stop", *host)


@pytest.mark.matrix  # as above
def test_nested_host_runs_a_guest_at_el2(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start", "--host-model", "nested", timeout=FIRST_S)

    done = pyvmm("run", "--host-model", "nested", "--nested", "hello", timeout=FIRST_S)

    assert done.stdout.startswith("Hello from EL2 on vCPU 0")
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (("-c", "9"), "-c 9: this host gives one VM at most 8 vCPUs", "use -c 8 or less"),
        (("--irqchip", "gicv3"), "this host's KVM has no gicv3", "use one of gicv2"),
        (("--nested",), "--nested: this host's KVM gives guests no EL2", ""),
    ],
)
def test_gicv2_host_refuses_what_it_lacks(
    options: tuple[str, ...], words: str, hint: str, pyvmm: Pyvmm
) -> None:
    done = pyvmm("run", "--host-model", "gicv2", *options, "hello", timeout=FIRST_S)

    assert done.returncode == 3
    assert words in message(done)
    assert hint in done.stderr


def test_doctor_says_that_vms_can_run_with_a_gicv2_alone(pyvmm: Pyvmm) -> None:
    done = pyvmm("doctor", "--host-model", "gicv2", "--json", timeout=FIRST_S)

    document = json.loads(done.stdout)
    assert (done.returncode, document["vms_can_run"]) == (0, True)
    assert (document["kvm"]["gicv2"], document["kvm"]["gicv3"]) == (True, False)
    (lack,) = [lack for lack in document["lacks"] if lack["name"] == "gicv3"]
    assert lack["fatal"] is False


def test_property_that_qemu_does_not_know_is_refused_with_its_reason(pyvmm: Pyvmm) -> None:
    done = pyvmm("run", "--host-machine", "gic-versoin=2", "hello", timeout=FIRST_S)

    assert done.returncode == 3
    assert "gic-versoin" in done.stderr


# In the hosts that have it: tests of the machine with a GICv2
ON_A_GICV2 = ("tests/machine/test_devices.py", "tests/machine/test_virtio_memory.py",
              "tests/snapshot/test_machine.py", "tests/test_options.py")  # fmt: skip


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_virtio_devices_and_snapshots_work_with_a_gicv2(kernel: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.in_host", *ON_A_GICV2],
        env=os.environ | {"PYVMM_HOST_MODEL": "gicv2", "PYVMM_HOST_KERNEL": kernel},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
