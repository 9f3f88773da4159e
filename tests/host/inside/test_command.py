"""The surroundings of a command in the emulated host."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pyvmm.host.inside import command


def test_commands_at_the_same_time_make_one_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RUNTIME_DIRS", tmp_path)
    made: list[str] = []
    mkdir = os.mkdir

    def all_at_once(path: Path, mode: int = 0o777) -> None:
        together.wait(120)
        mkdir(path, mode)

    together = threading.Barrier(4)
    monkeypatch.setattr(os, "mkdir", all_at_once)
    threads = [
        threading.Thread(target=lambda: made.append(command._runtime_dir(os.getuid(), os.getgid())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    directory = tmp_path / str(os.getuid())
    assert made == [str(directory)] * 4
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.stat().st_uid == os.getuid()
