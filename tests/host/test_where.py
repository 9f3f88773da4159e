"""Where a command runs: on this machine, in an emulated host, and why not."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pyvmm import host
from pyvmm.errors import HostError
from pyvmm.host import HostSettings


@pytest.fixture(autouse=True)
def arm64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm64 machine whose KVM can be used, not inside an emulated host."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(host, "DEVICE", tmp_path / "kvm")
    (tmp_path / "kvm").touch()
    monkeypatch.delenv(host.INSIDE_VARIABLE, raising=False)


def test_arm64_machine_with_kvm_runs_commands_itself() -> None:
    assert host.why_not_local() is None
    assert host.is_local(HostSettings())
    assert host.is_local(HostSettings(kind="local"))


@pytest.mark.parametrize(
    "settings",
    [
        HostSettings(kind="emulated"),
        HostSettings(cpu="max,sve384=off"),
        HostSettings(kernel="5.10"),
    ],
)
def test_what_only_an_emulated_host_can_be_is_asked_of_one(settings: HostSettings) -> None:
    assert not host.is_local(settings)


def test_inside_an_emulated_host_every_command_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host.INSIDE_VARIABLE, "QEMU 7.2")

    assert host.is_local(HostSettings(kind="emulated"))


def test_other_architectures_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    assert not host.is_local(HostSettings())
    with pytest.raises(HostError, match="this machine is x86_64"):
        host.is_local(HostSettings(kind="local"))


def test_missing_device_says_so(tmp_path: Path) -> None:
    (tmp_path / "kvm").unlink()

    assert not host.is_local(HostSettings())
    with pytest.raises(HostError, match="kvm does not exist"):
        host.is_local(HostSettings(kind="local"))


def test_device_that_is_not_for_this_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)

    with pytest.raises(HostError, match="not readable and writable") as caught:
        host.is_local(HostSettings(kind="local"))

    assert "usermod -aG kvm" in (caught.value.hint or "")
