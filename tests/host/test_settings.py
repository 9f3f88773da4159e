"""The settings of an emulated host: accepted and refused values."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import UsageError
from pyvmm.host import saved
from pyvmm.host.settings import (
    KERNEL_SUITES,
    LINUX,
    QEMU_SUITES,
    SUITES,
    HostSettings,
    matches,
    suites_for,
)


def test_default_models_the_power_of_two_lengths() -> None:
    settings = HostSettings()

    assert (settings.kind, settings.cpu) == ("auto", "max,sve2048=on")
    assert not settings.customised


@pytest.mark.parametrize("kernel", KERNEL_SUITES)
@pytest.mark.parametrize("qemu", QEMU_SUITES)
def test_settings_accept_every_known_version(kernel: str, qemu: str) -> None:
    settings = HostSettings(kernel=kernel, qemu=qemu)

    assert settings.label.startswith(f"Linux {kernel}, QEMU {qemu}, ")


@pytest.mark.parametrize("suite", SUITES)
def test_settings_accept_a_suite(suite: str) -> None:
    assert HostSettings(kernel=suite, qemu=suite).customised


@pytest.mark.parametrize(
    ("kernel", "qemu"), [("6.12.43", "9.2"), ("7.1", "11.1.3"), ("6", "10.0"), ("8.1", "12")]
)
def test_settings_accept_a_version_that_debian_may_have(kernel: str, qemu: str) -> None:
    assert HostSettings(kernel=kernel, qemu=qemu).customised


@pytest.mark.parametrize(
    ("version", "suites"),
    [
        ("5.10", ["bullseye"]),
        ("5.10.223", ["bullseye"]),
        ("6.1", ["bookworm"]),
        ("6.12", ["trixie", "bookworm-backports"]),
        ("7.2", ["sid", "forky", "trixie-backports", "bookworm-backports"]),
        ("7.1", ["sid", "forky", "trixie-backports", "bookworm-backports"]),
        ("5.15", []),
    ],
)
def test_suites_for_returns_the_likeliest_suite_first(version: str, suites: list[str]) -> None:
    assert suites_for(LINUX, version) == suites


def test_matches_accepts_the_same_series_only() -> None:
    assert matches("6.1", "6.1.176")
    assert matches("6.1.176", "6.1.176")
    assert not matches("6.1", "6.12.3")
    assert not matches("6.1.176", "6.1")


def test_append_makes_the_settings_customised() -> None:
    settings = HostSettings(append="kvm-arm.mode=nvhe")

    assert settings.customised
    assert settings.label.endswith(", kvm-arm.mode=nvhe")
    assert saved.key(settings) != saved.key(HostSettings())


def test_machine_makes_the_settings_customised() -> None:
    settings = HostSettings(machine="gic-version=2,mte=on")

    assert settings.customised
    assert settings.label.endswith(", -M gic-version=2,mte=on")
    assert saved.key(settings) != saved.key(HostSettings())
    assert saved.key(settings) != saved.key(HostSettings(machine="gic-version=2"))


def test_settings_accept_an_existing_path(tmp_path: Path) -> None:
    image = tmp_path / "Image"
    image.touch()

    settings = HostSettings(kernel=str(image))

    assert settings.customised
    assert settings.label.startswith("Linux Image, ")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"kind": "remote"}, "`host.kind`=remote: not one of auto, local, emulated"),
        ({"kernel": "4.4"}, "`host.kernel`=4.4: no Debian suite that pyvmm knows has that version"),
        ({"kernel": "5.15"}, "has that version (5.10, 6.1, 6.12, 7.2)"),
        ({"kernel": "woody"}, "not a Debian suite (bullseye, bookworm, trixie, sid, "),
        ({"kernel": "6.x"}, "`host.kernel`=6.x: not a version"),
        ({"kernel": "6."}, "`host.kernel`=6.: not a version"),
        ({"kernel": ""}, "`host.kernel`=: not a version"),
        ({"kernel": "./nowhere/Image"}, "`host.kernel`=./nowhere/Image: No such file"),
        ({"qemu": "1.0"}, "`host.qemu`=1.0: no Debian suite that pyvmm knows has that version"),
        ({"qemu": "/" + "x" * 300}, "File name too long"),
        ({"qemu": "/nowhere/qemu"}, "`host.qemu`=/nowhere/qemu: No such file"),
        ({"cpu": ""}, "`host.cpu`='': not a CPU"),
        ({"cpu": "max, sve=off"}, "not a CPU"),
        ({"cpu": "max\n"}, "not a CPU"),
        ({"machine": "gic-version"}, "'gic-version' is not a property of QEMU's machine virt"),
        ({"machine": "mte=on,"}, "'' is not a property"),
        ({"machine": "mte=on, gic-version=2"}, "' gic-version=2' is not a property"),
        ({"machine": "mte=on\n"}, "is not a property"),
        ({"machine": "virtualization=off"}, "without EL2 the host would have no KVM"),
        ({"machine": "mte=on,memory-backend=x"}, "pyvmm keeps the host's memory in a file"),
        ({"append": "quiet\ninit=/x"}, "not text for a kernel command line"),
        ({"append": "x" * 1025}, "not text for a kernel command line"),
    ],
)
def test_settings_refuse_invalid_values_by_the_fields_name(
    choice: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        HostSettings(**choice)

    assert words in caught.value.message
