"""The files of pyvmm that are copied into an emulated host, and their fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.host.parts import payload


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small pyvmm."""
    (tmp_path / "host").mkdir()
    (tmp_path / "guests").mkdir()
    (tmp_path / "cli.py").write_text("cli")
    (tmp_path / "host/agent.py").write_text("agent")
    (tmp_path / "guests/hello").write_bytes(b"\x7fELF")
    monkeypatch.setattr(payload, "PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_fingerprint_is_stable() -> None:
    assert payload.fingerprint() == payload.fingerprint()


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda package: (package / "cli.py").write_text("CLI"),
    "new file": lambda package: (package / "new.py").write_text(""),
    "file less": lambda package: (package / "guests/hello").unlink(),
    "name": lambda package: (package / "cli.py").rename(package / "clj.py"),
    "moved": lambda package: (package / "cli.py").rename(package / "host/cli.py"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fingerprint_changes_with_the_code(change: Callable[[Path], object], package: Path) -> None:
    before = payload.fingerprint()

    change(package)

    assert payload.fingerprint() != before


def test_fingerprint_ignores_files_that_are_not_copied(package: Path) -> None:
    before = payload.fingerprint()

    (package / "host/__pycache__").mkdir()
    (package / "host/__pycache__/agent.cpython-311.pyc").write_bytes(b"compiled")
    (package / "host/__pycache__/agent.cpython-313.pyc.140282317641872").write_bytes(b"in part")
    (package / "_kvm.abi3.so").write_bytes(b"for another machine")
    (package / ".cli.py.swp").write_bytes(b"an editor's")

    assert payload.fingerprint() == before


def test_payload_has_the_guests_and_the_start_script() -> None:
    files = {str(path) for path in payload.files()}

    assert {"cli.py", "host/inside/agent.py", "host/inside/init.sh", "kvm/_build.py"} <= files
