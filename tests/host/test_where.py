"""The choice between this machine's KVM and an emulated host, and its errors."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

import pytest

from pyvmm import host
from pyvmm.errors import HostError
from pyvmm.host import HostSettings, access


@pytest.fixture(autouse=True)
def arm64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an arm64 machine with a usable KVM, outside an emulated host."""
    monkeypatch.setattr("pyvmm.host.machine", lambda: "aarch64")
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
def test_customised_settings_choose_an_emulated_host(settings: HostSettings) -> None:
    assert not host.is_local(settings)


def test_inside_an_emulated_host_every_command_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host.INSIDE_VARIABLE, "QEMU 7.2")

    assert host.is_local(HostSettings(kind="emulated"))


def test_local_host_is_refused_on_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.host.machine", lambda: "x86_64")

    assert not host.is_local(HostSettings())
    with pytest.raises(HostError, match="this machine is x86_64"):
        host.is_local(HostSettings(kind="local"))


def test_local_host_is_refused_without_a_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").unlink()

    assert not host.is_local(HostSettings())
    with pytest.raises(HostError, match="kvm does not exist"):
        host.is_local(HostSettings(kind="local"))


@pytest.mark.parametrize(
    ("settings", "remarks"),
    [
        (HostSettings(), 1),
        (HostSettings(kind="emulated"), 0),
        (HostSettings(kernel="5.10"), 0),
    ],
)
def test_automatic_emulated_host_is_explained_by_the_missing_device(
    settings: HostSettings, remarks: int, tmp_path: Path
) -> None:
    (tmp_path / "kvm").unlink()
    said: list[str] = []

    host.say_why_emulated(settings, said.append)

    assert len(said) == remarks
    assert all("kvm does not exist" in line and "\n" not in line for line in said)


def test_emulated_host_on_another_architecture_is_not_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyvmm.host.machine", lambda: "x86_64")
    said: list[str] = []

    host.say_why_emulated(HostSettings(), said.append)

    assert not said


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let open() fail with an error, although access() allows it."""

    def refuse(path: Path, flags: int) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("os.open", refuse)


@pytest.mark.parametrize("kind", ["auto", "local"])
@pytest.mark.parametrize(
    ("number", "name", "remedy"),
    [
        (errno.EPERM, "EPERM", "--device /dev/kvm"),
        (errno.ENODEV, "ENODEV", "dmesg"),
        (errno.ENXIO, "ENXIO", "dmesg"),
        (errno.EBUSY, "EBUSY", "dmesg"),
        (errno.EIO, "EIO", "dmesg"),
    ],
)
def test_device_that_cannot_be_opened_is_reported_with_the_kernels_reason(
    kind: str, number: int, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refuse_to_open(monkeypatch, number)

    with pytest.raises(HostError) as caught:
        host.is_local(HostSettings(kind=kind))

    assert str(tmp_path / "kvm") in str(caught.value)
    assert f"[{name}]" in str(caught.value)
    assert remedy in (caught.value.hint or "")
    assert "`host.kind`=emulated" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "settings", [HostSettings(kind="emulated"), HostSettings(cpu="max,sve384=off")]
)
def test_emulated_host_needs_no_device(
    settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_open(monkeypatch, errno.EACCES)

    assert not host.is_local(settings)


@pytest.fixture
def as_another(monkeypatch: pytest.MonkeyPatch) -> str:
    """Be a user outside the group of a device that has one."""
    refuse_to_open(monkeypatch, errno.EACCES)
    user = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(access, "_group", lambda gid: "virtual")
    monkeypatch.setattr(access, "_members", lambda group: [])
    return user


@pytest.mark.parametrize(
    ("mode", "gid", "members", "remedy"),
    [
        (0o660, 107, [], "sudo usermod -aG virtual {user}, then log in again"),
        (0o660, 107, ["{user}"], "you were added to group virtual after your login: log in again"),
        (0o600, 107, [], "sudo chgrp kvm {device} && sudo chmod 660 {device}"),
        (0o660, 0, [], "sudo chgrp kvm {device} && sudo chmod 660 {device}"),
    ],
)
def test_refusal_hints_how_to_get_the_permission(
    mode: int,
    gid: int,
    members: list[str],
    remedy: str,
    as_another: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"user": as_another, "device": tmp_path / "kvm"}
    monkeypatch.setattr(access, "_members", lambda _: [name.format(**names) for name in members])
    monkeypatch.setattr(
        access, "_status", lambda path: os.stat_result((mode, 0, 0, 1, 0, gid, 0, 0, 0, 0))
    )

    with pytest.raises(HostError, match=f"cannot be opened by {as_another}") as caught:
        host.is_local(HostSettings())

    assert (caught.value.hint or "").startswith(remedy.format(**names) + "; ")
    assert caught.value.exit_code == 3
