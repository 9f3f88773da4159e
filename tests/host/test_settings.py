"""What an emulated host is to model: what is taken, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import UsageError
from pyvmm.host import saved
from pyvmm.host.settings import KERNEL_SUITES, QEMU_SUITES, HostSettings


def test_default_models_the_power_of_two_lengths() -> None:
    settings = HostSettings()

    assert (settings.kind, settings.cpu) == ("auto", "max,sve2048=on")
    assert not settings.customised


@pytest.mark.parametrize("kernel", KERNEL_SUITES)
@pytest.mark.parametrize("qemu", QEMU_SUITES)
def test_every_known_version_is_taken(kernel: str, qemu: str) -> None:
    settings = HostSettings(kernel=kernel, qemu=qemu)

    assert settings.label.startswith(f"Linux {kernel}, QEMU {qemu}, ")


def test_words_for_the_kernel_make_another_host() -> None:
    settings = HostSettings(append="kvm-arm.mode=nvhe")

    assert settings.customised
    assert settings.label.endswith(", kvm-arm.mode=nvhe")
    assert saved.key(settings) != saved.key(HostSettings())


def test_path_that_exists_is_taken(tmp_path: Path) -> None:
    image = tmp_path / "Image"
    image.touch()

    settings = HostSettings(kernel=str(image))

    assert settings.customised
    assert settings.label.startswith("Linux Image, ")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"kind": "remote"}, "--host remote: not one of auto, local, emulated"),
        ({"kernel": "4.4"}, "--host-kernel 4.4: not a version pyvmm knows (5.10, 6.1, 6.12, 7.2)"),
        ({"kernel": ""}, "--host-kernel : not a version"),
        ({"kernel": "./nowhere/Image"}, "--host-kernel ./nowhere/Image: no such file"),
        ({"qemu": "9.9"}, "--host-qemu 9.9: not a version pyvmm knows"),
        ({"qemu": "/nowhere/qemu"}, "--host-qemu /nowhere/qemu: no such file"),
        ({"cpu": ""}, "--host-cpu '': not a CPU"),
        ({"cpu": "max, sve=off"}, "not a CPU"),
        ({"cpu": "max\n"}, "not a CPU"),
        ({"append": "quiet\ninit=/x"}, "not words of a kernel command line"),
        ({"append": "x" * 1025}, "not words of a kernel command line"),
    ],
)
def test_nonsense_is_refused_by_the_options_name(choice: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        HostSettings(**choice)

    assert words in caught.value.message
