"""``pyvmm restore``: what it refuses before it starts anything, and the names of clones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import main
from pyvmm.commands import _attached
from pyvmm.commands import restore as command
from pyvmm.config import Config, Disk
from pyvmm.snapshot.clones import warning
from tests.snapshot import sample
from tests.snapshot.files import save_machine

Capture = pytest.CaptureFixture[str]


def test_restore_of_a_strangers_snapshot_names_the_files_and_opens_none(
    tmp_path: Path, capsys: Capture
) -> None:
    disk, path = tmp_path / "bashrc", tmp_path / "in/evil.snap"
    disk.write_bytes(b"mine" * 128)
    path.parent.mkdir()
    state = sample.state()
    config = state.config.replace(devices=(Disk(path=disk),))
    save_machine(path, state.replace(config=config))

    assert main(["restore", str(path)]) == 2

    assert capsys.readouterr().err == (
        f"pyvmm: {path}: you did not save it here, and it names files elsewhere:\n"
        f"  disk {disk}, read-write\n"
        "  hint: if the guest may use them: give it again with -d FILE, or use --trust\n"
    )
    assert disk.read_bytes() == b"mine" * 128


@pytest.mark.parametrize(
    "words", [["restore", "a.snap", "--save-on-exit", "-"], ["save", "vm", "-"]]
)
def test_snapshot_is_not_written_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.snap").touch()

    assert main(words) == 2

    assert "hint: name a file; `pyvmm snapshot export FILE -`" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.snap"]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the VMs that `restore` runs here; none of them runs."""
    found: list[str] = []

    def run_attached(config: Config, _: object) -> int:
        found.append(config.name)
        return 0

    def run_several(_: Path, name: str, options: dict[str, Any]) -> int:
        found.extend(f"{name}-{number + 1}" for number in range(options["count"]))
        return 0

    monkeypatch.setattr(command, "run_here_or_forward", lambda *_, **__: None)
    monkeypatch.setattr(_attached, "run_attached", run_attached)
    monkeypatch.setattr(command, "run_several", run_several)
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["sample"]),
        (["--name", "other"], ["other"]),
        (["--clone"], [f"sample-{os.getpid()}"]),
        (["--clone", "--name", "other"], ["other"]),
        (["--count", "2"], ["sample-1", "sample-2"]),
        (["--count", "2", "--clone"], [f"sample-{os.getpid()}-1", f"sample-{os.getpid()}-2"]),
        (["--count", "2", "--name", "other"], ["other-1", "other-2"]),
    ],
    ids=" ".join,
)
def test_clones_have_names_of_their_own_and_a_warning(
    tmp_path: Path, capsys: Capture, names: list[str], words: list[str], expected: list[str]
) -> None:
    path = tmp_path / "a.snap"
    save_machine(path, sample.state())
    is_clone = "--clone" in words or "--count" in words

    assert main(["restore", str(path), *words]) == 0

    assert names == expected
    found = f"pyvmm: {path}: {warning(sample.state())}\n"
    assert capsys.readouterr().err == (found if is_clone else "")


def test_clones_cannot_be_saved_to_one_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.snap"
    save_machine(path, sample.state())
    monkeypatch.setattr(command, "run_here_or_forward", None)  # it may boot a host first

    assert main(["restore", str(path), "--count", "2", "--save-on-exit", f"{path}.end"]) == 2

    assert "--count and --save-on-exit contradict each other" in capsys.readouterr().err
