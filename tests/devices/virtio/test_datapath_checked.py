"""The data path's tests with AddressSanitizer and UndefinedBehaviorSanitizer, in their own process.

The matrix runs 10,000 cases of each kind: queues, disks, consoles and entropy devices.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.devices.virtio.plain import GCC, can_build
from tests.devices.virtio.test_datapath import CASES, CHECKED

pytestmark = pytest.mark.skipif(not can_build(), reason="no compiler for this machine")

TESTS: Final = tuple(
    str(Path(__file__).with_name(f"test_datapath{name}.py")) for name in ("", "_exits")
)


def library(name: str) -> str:
    command = [GCC, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "cases", [CASES, pytest.param(10_000, marks=[pytest.mark.matrix, pytest.mark.timeout(3600)])]
)
@pytest.mark.timeout(600)
def test_data_path_has_no_undefined_behaviour(cases: int) -> None:
    environment = {
        **os.environ,
        CHECKED: "1",
        "PYVMM_DATA_PATH_CASES": str(cases),
        "LD_PRELOAD": library("libasan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        [*command, "-k", "does_as or stays or serves or exits", "--timeout", "3600"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
