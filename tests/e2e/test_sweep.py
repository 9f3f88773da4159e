"""`pyvmm sweep` as a user types it, with real guests, some of which hang."""

from __future__ import annotations

import json
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.e2e import vls
from tests.e2e.conftest import ENOUGH_S, FIRST_S, Pyvmm, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(FIRST_S), pytest.mark.usefixtures("emulated")]

EACH = ("--sve-vls-each", "all", "--jobs", "2")


def test_guest_sees_every_set_of_the_host(pyvmm: Pyvmm) -> None:
    done = pyvmm("sweep", "sve-vls", *EACH, "--json")

    runs = json.loads(done.stdout)["runs"]
    assert [tuple(run["set"]) for run in runs] == [
        vls.POWERS[:n] for n in range(1, len(vls.POWERS) + 1)
    ]
    assert all(
        run["output"].endswith(f"SVE vector lengths: {vls.show(tuple(run['set']), ' ')}\n")
        for run in runs
    ), runs
    assert done.returncode == 0


def test_guest_that_hangs_ends_by_its_timeout(pyvmm: Pyvmm, nothing_left: None) -> None:
    done = pyvmm("sweep", "exit", *EACH, "-p", "spin", "--timeout", "1")

    assert done.stdout.splitlines()[-1] == "5 runs: 5 timed out", done
    assert done.returncode == 1


def test_ctrl_c_ends_the_guests_and_reports_finished_runs(
    pyvmm: Pyvmm, tmp_path: Path, nothing_left: None
) -> None:
    report = tmp_path / "report.xml"
    arguments = ("sweep", "exit", *EACH, "-p", "spin", "--junit", str(report))

    with pyvmm.start(*arguments, stderr=subprocess.PIPE) as process:
        wait_for(lambda: len(json.loads(pyvmm("list", "--json").stdout)["vms"]) == 2, "a guest")
        process.send_signal(signal.SIGINT)

        assert process.wait(ENOUGH_S) == 130

    assert ET.parse(report).getroot()[0].get("skipped") == "5"


def test_set_that_the_host_cannot_give_is_refused(pyvmm: Pyvmm) -> None:
    done = pyvmm("sweep", "hello", "--sve-vls-each", "128;128,512")

    assert "can give --sve-vls-each=128 or --sve-vls-each=128,256,512" in done.stderr
    assert (done.stdout, done.returncode) == ("", 3)
