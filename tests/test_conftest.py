"""What tests/conftest.py does for each run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

INTERRUPTED = 2  # pytest's exit code

SLEEPER = """
import os, time
import pytest

@pytest.fixture
def host():
    yield
    print("the host ends")

def test_sleeps(host):
    os.write(int(os.environ["STARTED"]), b"!")
    time.sleep(600)
"""


def test_sigterm_ends_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_sleeper.py").write_text(SLEEPER)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "pytest", "-s", "-p", "tests.conftest", "test_sleeper.py"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "STARTED": str(writer)},
        pass_fds=[writer],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(writer)
        assert os.read(reader, 1) == b"!"
        os.close(reader)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate()

    assert "the host ends" in printed
    assert process.returncode == INTERRUPTED
