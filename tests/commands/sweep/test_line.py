"""The command lines of a sweep's runs."""

from __future__ import annotations

from typing import Any

from pyvmm.arm64 import vl
from pyvmm.commands.sweep._line import command
from pyvmm.host.settings import HostSettings
from pyvmm.sweep.plan import Guest, Run

ELSEWHERE = HostSettings(cpu="max,sve384=off")
POWERS = frozenset({128, 256, 512})


def run(guest: Guest, **fields: Any) -> Run:
    """Return a run with the command that the sweep gives it."""
    planned = Run(**{"number": 1, "guest": guest, "where": HostSettings(), **fields})
    return planned.replace(command=command(planned))


def test_command_line_is_that_of_one_run() -> None:
    guest = Guest(image="-odd", initrd="root.cpio", options=("-m", "64"), timeout_s=2.5)

    words = run(guest=guest, vls=POWERS, cpus=2, where=ELSEWHERE).arguments("-odd", "root.cpio")

    assert words == [
        "run", "--host=auto", "--host-kernel=6.1", "--host-qemu=7.2", "--host-cpu=max,sve384=off",
        "--host-machine=", "--host-append=",
        "--sve-vls=128,256,512", "--cpus", "2", "--initrd", "root.cpio", "--timeout", "2.5",
        "-m", "64", "--", "-odd",
    ]  # fmt: skip


def test_empty_set_is_a_run_without_sve() -> None:
    none = run(Guest(image="hello"), vls=vl.NO_SVE)

    assert "--no-sve" in none.arguments("hello", None)
    assert none.lengths == "none"
