"""`pyvmm sve check` as a user types it, and on every kernel with every kind of host."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pyvmm.host.settings import KERNEL_SUITES
from tests.e2e import vls
from tests.e2e.conftest import FIRST_S, Pyvmm, message

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S)]

SERIES = "registers/surplus-slices-as-the-series-had-them"

# The intended deviations of each kernel.  The reasons are in pyvmm/svecheck/promises.py.
POWER_OFF = {f"again/adding-power-off-{state}" for state in ("initialised", "finalized", "ran")}
OLD = {SERIES, "registers/zfr0-can-be-cut-down", "vcpus/one-without-sve", "vcpus/one-with-sve"}
KNOWN = {
    "5.10": OLD,
    "6.1": OLD,
    "6.12": {SERIES} | POWER_OFF,
    "7.2": {SERIES, "reglist/order-of-the-others"} | POWER_OFF,
}

# The cases that each host skips.
HOLE_ONLY = {"sets/with-one-the-host-lacks-below"}
FROM_512 = HOLE_ONLY | {"sets/as-on-a64fx", "sets/every-pair-left-out"}
FROM_256 = FROM_512 | {
    "again/the-set-is-chosen-anew", "again/a-final-set-stays", "sets/can-grow-again",
    "sets/without-128", "sets/without-one-between", "sets/the-longest-alone",
    "vcpus/different-sets", "vcpus/different-lengths-seen",
}  # fmt: skip
HOSTS = {
    "1 quadword": (vls.ONE, FROM_256),
    "2 quadwords": (vls.TWO, FROM_512),
    "4 quadwords": (vls.FOUR, HOLE_ONLY),
    "16 quadwords": (vls.SIXTEEN, HOLE_ONLY),
    "a hole": (vls.HOLE, set[str]()),
}


def by_verdict(document: dict[str, list[dict[str, str]]], verdict: str) -> set[str]:
    return {case["name"] for case in document["cases"] if case["verdict"] == verdict}


@pytest.mark.matrix
@pytest.mark.parametrize("kernel", KERNEL_SUITES)
@pytest.mark.parametrize(("host", "skipped"), HOSTS.values(), ids=HOSTS)
def test_every_deviation_of_a_kernel_is_known_by_name(
    kernel: str, host: vls.Host, skipped: set[str], pyvmm: Pyvmm, tmp_path: Path
) -> None:
    where = ("--host-cpu", host.cpu, "--host-kernel", kernel)
    junit = tmp_path / "sve.xml"
    pyvmm("host", "start", *where, timeout=FIRST_S)
    began = time.monotonic()

    try:
        done = pyvmm("sve", "check", "--json", "--junit", str(junit), *where, timeout=FIRST_S)
    finally:
        pyvmm("host", "rm", *where)

    document = json.loads(done.stdout)
    print(f"\nLinux {kernel}, -cpu {host.cpu}: {document['counts']}, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    differs = [case for case in document["cases"] if case["verdict"] == "differs"]
    assert not differs
    assert by_verdict(document, "known") == KNOWN[kernel]
    assert by_verdict(document, "skipped") == skipped
    assert document["where"]["lengths"] == vls.show(host.lengths)
    assert f"Linux {kernel}." in document["where"]["kernel"]
    assert ET.parse(junit).getroot()[0].get("failures") == "0"
    assert done.returncode == 0


@pytest.mark.usefixtures("emulated")
def test_output_names_the_host_and_each_case(pyvmm: Pyvmm) -> None:
    done = pyvmm("sve", "check", "-k", "states/run-")

    lines = done.stdout.splitlines()
    assert lines[0].startswith("host      emulated: QEMU ")
    assert lines[4:] == [
        "ok       states/run-created: ENOEXEC",
        "ok       states/run-without-sve: ok",
        "ok       states/run-initialised: EPERM",
        "ok       states/run-finalized: ok",
        "4 cases: 4 ok, 0 differs, 0 known, 0 skipped",
    ]
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_verdicts_are_coloured_only_on_a_terminal(no_color: str, pyvmm: Pyvmm) -> None:
    controller, terminal = pty.openpty()
    command = [*pyvmm.command, "sve", "check", "-k", "sets/empty"]

    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        timeout=FIRST_S,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": no_color},
    )

    os.close(terminal)
    shown = os.read(controller, 4096).decode()
    os.close(controller)
    assert done.returncode == 0
    assert ("\x1b[32mok" in shown) == (not no_color)


@pytest.mark.usefixtures("emulated")
def test_junit_file_is_written_on_this_machine(pyvmm: Pyvmm, tmp_path: Path) -> None:
    file = tmp_path / "sve.xml"

    done = pyvmm("sve", "check", "-k", "surplus-slices-as", "--junit", str(file))

    suite = ET.parse(file).getroot()[0]
    assert [entry.get("name") for entry in suite.iter("testcase")] == [SERIES.partition("/")[2]]
    assert "1 known" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-k", "nonsense"), "-k nonsense: no case has that in its name"),
        (("--junit", "/nowhere/sve.xml"), "/nowhere is not a directory that you can write to"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    options: tuple[str, ...], words: str, pyvmm: Pyvmm
) -> None:
    done = pyvmm("sve", "check", *options)

    assert words in message(done)
    assert done.returncode == 2


def test_host_without_sve_exits_with_3(pyvmm: Pyvmm) -> None:
    pyvmm("host", "start", "--host-cpu", vls.NONE.cpu, timeout=FIRST_S)

    done = pyvmm("sve", "check", "--host-cpu", vls.NONE.cpu)

    assert "this host's KVM lacks SVE" in message(done)
    assert done.returncode == 3
