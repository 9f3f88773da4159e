"""``pyvmm restore``: what it refuses before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli import main
from pyvmm.config import Disk
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
