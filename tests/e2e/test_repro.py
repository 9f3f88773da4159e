"""`pyvmm repro` as a user types it, with its controls; the whole matrix is marked `matrix`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.settings import DEFAULT_CPU, KERNEL_SUITES
from pyvmm.repro.capsule import Capsule
from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm, message, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S)]

ZCR = ("repro", "zcr-el12")
OLDEST = "5.10"  # Linux 5.10 crashes with the probes of the module's control
SHORT = ("--zcr", "0,2,15")


def rows(document: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [row for row in document["evidence"]["rows"] if row["phase"] == phase]


@pytest.mark.usefixtures("emulated")
def test_bug_is_not_reproduced_on_a_correct_model_with_and_without_the_hack(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    report = tmp_path / "report.md"
    options = ("--hack", "2", "--control", "flip,module", "--report", str(report), "--json")

    done = pyvmm(*ZCR, *SHORT, *options, timeout=FIRST_S)

    document = json.loads(done.stdout)
    assert (document["verdict"], done.returncode) == ("NOT REPRODUCED", 0), document["why"]
    assert document["machine"].startswith("emulated: QEMU 7.2.")
    module = document["evidence"]["module"]
    assert module["hits"] > 0 and module["last_zcr_el12"] == 2
    flip, by_module = rows(document, "control")
    assert flip["caught"] == flip["damaged"] > 0
    # The control acts like the bug: the guest's LEN=0 shortens a host process to 128 bits.
    assert (by_module["vl_min"], by_module["prctl"]) == (16, 256)
    assert by_module["bad"] > 0
    assert report.read_text().startswith("# zcr-el12: NOT REPRODUCED\n")
    assert json.loads(report.with_suffix(".json").read_text())["why"] == document["why"]


@pytest.mark.usefixtures("emulated")
def test_run_of_a_capsule_gives_the_same_verdict(pyvmm: Pyvmm, tmp_path: Path) -> None:
    capsule = tmp_path / "case.zip"
    wishes = ("--leave-out", "ffr", "--guest-max-vl", "256")
    first = pyvmm("repro", "sve-snapshot", *wishes, "--save", str(capsule))

    again = pyvmm("repro", "run", str(capsule))

    assert "\nREPRODUCED\n" in first.stdout
    assert first.returncode == 1
    assert again.stdout.endswith("the verdict holds: REPRODUCED then, REPRODUCED now\n")
    assert again.returncode == 0


@pytest.mark.usefixtures("emulated")
def test_verdict_is_inconclusive_when_the_module_does_not_compile(
    pyvmm: Pyvmm, tmp_path: Path
) -> None:
    capsule = tmp_path / "case.zip"
    pyvmm("repro", "sve-snapshot", "--leave-out", "ffr", "--save", str(capsule))
    packed = Capsule.read(capsule)
    manifest = packed.manifest | {"reproduction": "zcr-el12", "options": {"hack": "2"}}
    members = {"module/zcr_el12.c": b"#error not today\n", **packed.members}
    Capsule(manifest, members).write(capsule)

    done = pyvmm("repro", "run", "--trust", str(capsule))

    assert "INCONCLUSIVE\n  make zcr_el12.c:" in done.stdout
    assert "not today" in done.stdout
    assert done.returncode == 3


def test_verdict_is_unsupported_on_a_host_without_sve(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start", "--host-cpu", vls.NONE.cpu, timeout=FIRST_S)

    done = pyvmm(*ZCR, "--host-cpu", vls.NONE.cpu)
    pyvmm("host", "stop", "--host-cpu", vls.NONE.cpu)  # the next test expects one host

    assert done.stdout.splitlines()[-2:] == ["UNSUPPORTED", "  the host's programs have no SVE"]
    assert done.returncode == 3


@pytest.mark.usefixtures("emulated")
def test_verdict_is_inconclusive_when_the_host_is_killed(pyvmm: Pyvmm) -> None:
    def host() -> dict[str, Any]:
        (found,) = [host for host in pyvmm.hosts() if host["cpu"].startswith(DEFAULT_CPU)]
        return found

    process = pyvmm.start(*ZCR, "--rounds", "500", "--json", stderr=subprocess.DEVNULL)
    wait_for(lambda: host()["sessions"] > 0, "a run in the host")
    time.sleep(1)

    os.kill(host()["pid"], signal.SIGKILL)

    output, _ = process.communicate(timeout=FIRST_S)
    document = json.loads(output)
    assert (document["verdict"], process.returncode) == ("INCONCLUSIVE", 3)
    assert "ended during the command" in document["why"][0]
    assert pyvmm("host", "start", timeout=FIRST_S).returncode == 0  # for the next test


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--zcr", "16"), "--zcr 16: not values of LEN"),
        (("--zcr", "3-1"), "--zcr 3-1: not values of LEN"),
        (("--control", "nonsense"), "--control nonsense: not one of none, vl"),
        (("--hack", "16"), "--hack 16: not from 0 to 15"),
        (("--guest-max-vl", "130"), "130"),
        (("--rounds", "0"), "--rounds 0: not from 1 to 999"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    options: tuple[str, ...], words: str, pyvmm: Pyvmm
) -> None:
    done = pyvmm(*ZCR, *options)

    assert words in message(done)
    assert done.returncode == 2


# The verdict on each QEMU: without the arm step, with the guest alone, and with the hack.
BUGGY = ["BASELINE BROKEN", "REPRODUCED", "REPRODUCED"]
CORRECT = ["NOT REPRODUCED"] * 3
MODELS = {"5.2": BUGGY, "7.2": CORRECT, "10": CORRECT, "11": CORRECT}


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("qemu", MODELS)
@pytest.mark.parametrize("kernel", KERNEL_SUITES)
def test_every_model_on_every_kernel(qemu: str, kernel: str, pyvmm: Pyvmm, tmp_path: Path) -> None:
    where = ("--host-qemu", qemu, "--host-kernel", kernel, "--host-cpu", vls.SIXTEEN.cpu)
    began = time.monotonic()

    done = pyvmm(*ZCR, "--matrix", "--hack", "6", "--json", *where, timeout=3600)

    runs = json.loads(done.stdout)["runs"]
    verdicts = [run["verdict"] for run in runs]
    print(f"\nQEMU {qemu}, Linux {kernel}: {verdicts}, {time.monotonic() - began:.0f} s")
    assert [verdict.partition(",")[0] for verdict in verdicts] == MODELS[qemu]
    assert done.returncode == (1 if qemu == "5.2" else 0)
    hacked = {row["vl_min"] for row in rows(runs[2], "sweep")}
    assert hacked == ({112} if qemu == "5.2" else {256})  # 112: the series' own experiment


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("qemu", ["5.2", "11"])
def test_twenty_runs_agree(qemu: str, pyvmm: Pyvmm) -> None:
    where = ("--host-qemu", qemu)
    pyvmm("host", "start", *where, timeout=FIRST_S)

    runs = [pyvmm(*ZCR, "--json", *where, timeout=FIRST_S) for _ in range(20)]

    pyvmm("host", "rm", *where)
    verdicts = [json.loads(run.stdout)["verdict"].partition(",")[0] for run in runs]
    assert verdicts == [MODELS[qemu][1]] * 20


@pytest.mark.matrix
def test_verdict_is_unsupported_when_the_kernel_runs_at_el1(pyvmm: Pyvmm) -> None:
    where = ("--host-append", "kvm-arm.mode=nvhe")

    done = pyvmm(*ZCR, *where, timeout=FIRST_S)

    pyvmm("host", "rm", *where)
    assert done.stdout.splitlines()[-2] == "UNSUPPORTED"
    assert done.returncode == 3


@pytest.mark.matrix
@pytest.mark.timeout(FIRST_S)
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNEL_SUITES if kernel != OLDEST])
def test_control_of_the_module_is_caught_on_every_kernel(kernel: str, pyvmm: Pyvmm) -> None:
    where = ("--host-kernel", kernel)

    done = pyvmm(*ZCR, *SHORT, "--control", "module", "--json", *where, timeout=FIRST_S)

    pyvmm("host", "rm", *where)
    document = json.loads(done.stdout)
    assert (document["verdict"], done.returncode) == ("NOT REPRODUCED", 0), document["why"]
    (control,) = rows(document, "control")
    assert (control["vl_min"], control["prctl"]) == (16, 256)
    assert control["bad"] > 0
    assert not document["evidence"]["warnings"]


@pytest.mark.matrix
@pytest.mark.timeout(FIRST_S)
def test_control_that_would_crash_a_kernel_is_refused(pyvmm: Pyvmm) -> None:
    where = ("--host-kernel", OLDEST)

    done = pyvmm(*ZCR, *SHORT, "--control", "module", *where, timeout=FIRST_S)

    pyvmm("host", "rm", *where)
    assert "INCONCLUSIVE\n  loading zcr_el12: Operation not supported" in done.stdout
    assert done.returncode == 3


@pytest.mark.matrix
@pytest.mark.timeout(FIRST_S)
def test_verdict_is_inconclusive_when_the_kernel_refuses_the_module(pyvmm: Pyvmm) -> None:
    where = ("--host-append", "module.sig_enforce=1")

    done = pyvmm(*ZCR, "--hack", "2", *where, timeout=FIRST_S)

    pyvmm("host", "rm", *where)
    assert "INCONCLUSIVE\n  loading zcr_el12: " in done.stdout
    assert done.returncode == 3
