"""A person in tmux: a real terminal and its shell; a test types and reads the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

CONFIGURATION = "set -g status off\nset -g default-terminal screen\nset -s escape-time 0\n"
ENOUGH_S = 300.0  # a deadline for any event, even a boot under emulation


class Tmux:
    """A tmux server of its own, with one window of that size, where a shell's prompt is ``$``."""

    def __init__(self, program: Path, rows: int, columns: int) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="pyvmm-tmux-"))  # short: it is a socket's
        configuration = self._directory / "tmux.conf"
        configuration.write_text(CONFIGURATION)
        socket = self._directory / "socket"
        self._tmux = [str(program), "-S", str(socket), "-f", str(configuration)]
        environment = {name: v for name, v in os.environ.items() if name not in ("TMUX", "ENV")}
        subprocess.run(
            [*self._tmux, "new-session", "-d", "-x", str(columns), "-y", str(rows), "PS1='$ ' sh"],
            check=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._do("kill-server")
        shutil.rmtree(self._directory)

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names, or type text."""
        self._do("send-keys", *keys)

    def resize(self, rows: int, columns: int) -> None:
        """Change the window."""
        self._do("resize-window", "-x", str(columns), "-y", str(rows))

    @property
    def screen(self) -> list[str]:
        """The lines of the screen that are not empty."""
        return [line for line in self._do("capture-pane", "-p").splitlines() if line]

    def enter(self, prompt: str, *keys: str) -> None:
        """Type a command after the prompt has come: a shell does not edit lines before."""
        self._look_until(lambda screen: screen[-1].endswith(prompt), f"prompt {prompt!r}")
        self.type(*keys, "Enter")

    def expect(self, line: str) -> None:
        """Wait until a line of the screen equals the text."""
        self._look_until(lambda screen: line in screen, f"line {line!r}")

    def _look_until(self, seen: Callable[[list[str]], bool], what: str) -> None:
        deadline = time.monotonic() + ENOUGH_S
        while not seen(screen := self.screen or [""]):
            assert time.monotonic() < deadline, f"no {what} in {screen}"
            time.sleep(0.1)

    def _do(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout
