"""A run and what ends it, without a machine: KVM's part is in tests/e2e."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvmm.commands._attached import Attached, Extras
from pyvmm.config import Config
from pyvmm.terminal.stdio import Output

SIGTERM_CODE = 143


def test_signal_just_after_a_guests_reset_ends_the_run_with_its_code(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class JustReset:
        was_reset = has_ended = True
        is_paused = False
        resizing = SimpleNamespace(adopt=lambda before: None)

        def __enter__(self) -> JustReset:
            attached._machine = self  # type: ignore[assignment]  # a fake
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, *_: object) -> int:
            attached._stop(SIGTERM_CODE)
            return 0

        def stop(self, code: int) -> None:
            pass  # it has ended: a machine keeps its first outcome

    monkeypatch.setattr(Attached, "_make", lambda *_, **__: JustReset())
    monkeypatch.setattr(Attached, "_attach", lambda *_: None)
    with Output(1) as output:
        attached = Attached(Config(image=Path("guest")), Extras(reboot=True), output)

        assert attached.run() == SIGTERM_CODE


def test_reboot_passes_unread_input_to_the_next_machine(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bytes | str] = []

    class Rebooting:
        is_paused = False
        resets = 0
        console = SimpleNamespace(unread=b"not read")

        def __init__(self) -> None:
            self.was_reset = not calls

        def __enter__(self) -> Rebooting:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def follow(self, before: Rebooting) -> None:
            self.resets = before.resets + 1

        def run(self, *_: object) -> int:
            calls.append(f"run after {self.resets} resets")
            return 0

    monkeypatch.setattr(Attached, "_make", lambda *_, **__: Rebooting())
    monkeypatch.setattr(Attached, "_attach", lambda *_: None)
    monkeypatch.setattr(Attached, "_connect", lambda _: calls.append("connect"))
    with Output(1) as output:
        attached = Attached(Config(image=Path("guest")), Extras(reboot=True), output)
        attached._keyboard = SimpleNamespace(put_back=calls.append)  # type: ignore[assignment]  # a fake

        assert attached.run() == 0

    assert calls == ["run after 0 resets", b"not read", "connect", "run after 1 resets"]
