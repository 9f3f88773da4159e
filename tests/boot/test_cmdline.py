"""Kernel command lines, compared with lkvm's."""

from __future__ import annotations

import pytest

from pyvmm.boot.cmdline import command_line


@pytest.mark.parametrize(
    ("console", "device"), [("serial", "ttyS0"), ("virtio", "hvc0"), ("hv", "hvc0")]
)
def test_command_line_starts_like_lkvms(console: str, device: str) -> None:
    line = command_line("quiet", console=console)

    assert line == f" console={device} root=/dev/vda rw quiet"


def test_command_line_without_defaults_has_only_the_users_parameters() -> None:
    assert command_line("quiet", console="virtio", defaults=False) == "quiet"


def test_command_line_enables_plugged_memory_before_the_users_parameters() -> None:
    line = command_line("memhp_default_state=offline", hotplug=True)

    assert line == (
        " console=ttyS0 root=/dev/vda rw memhp_default_state=online_movable "
        "memhp_default_state=offline"
    )
    assert command_line("", hotplug=True, defaults=False) == ""
