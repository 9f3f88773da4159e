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

from tests.devices.builtc import sanitizers
from tests.devices.virtio.test_datapath import CASES, CHECKED

TESTS: Final = tuple(
    str(Path(__file__).with_name(f"test_datapath{name}.py")) for name in ("", "_exits")
)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(CASES, marks=pytest.mark.timeout(600)),
        pytest.param(10_000, marks=[pytest.mark.matrix, pytest.mark.timeout(7200)]),
    ],
)
def test_data_path_has_no_undefined_behaviour(cases: int) -> None:
    environment = {
        **os.environ,
        CHECKED: "1",
        "PYVMM_DATA_PATH_CASES": str(cases),
        **sanitizers(),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        [*command, "-k", "does_as or stays or serves or exits", "--timeout", "7200"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
