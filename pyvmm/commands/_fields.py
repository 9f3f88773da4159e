"""Fields and the options that set them: an error names the field, the command line the option.

An error's text has a field in backquotes, by its path from Config, SveRequest, CpuRequest, a
device's config, HostSettings or a function's argument: `vcpus`, or with a value `sve.vls`=128,256.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from pyvmm.errors import UsageError

_Value = TypeVar("_Value")

# Each option ends with what stands between it and its value.
OPTIONS = {
    "vcpus": "-c ",
    "memory": "-m ",
    "ram_base": "-m SIZE@",
    "sve.required": "--sve ",
    "sve.off": "--no-sve ",
    "sve.vls": "--sve-vls=",
    "sve.max_vl": "--sve-max-vl=",
    "cpu.pmu": "--pmu ",
    "cpu.nested": "--nested ",
    "cpu.e2h0": "--e2h0 ",
    "cpu.aarch32": "--aarch32 ",
    "cpu.mte": "--disable-mte ",
    "cpu.pvtime": "--no-pvtime ",
    "irqchip": "--irqchip ",
    "image": "IMAGE ",
    "initrd": "--initrd ",
    "params": "--params ",
    "nodefaults": "--nodefaults ",
    "console": "--console ",
    "virtio_transport": "--virtio-transport ",
    "kaslr_seed": "--kaslr-seed ",
    "timer_hz": "--override-bad-firmware-cntfrq ",
    "vcpu_affinity": "--vcpu-affinity ",
    "hugetlbfs": "--hugetlbfs ",
    "ttys": "--tty ",
    "name": "--name ",
    "timeout_s": "--timeout ",
    "fast_mmio": "--no-fast-mmio ",
    "devices.disk": "-d ",
    "devices.pmem": "--pmem ",
    "devices.rng": "--rng ",
    "devices.balloon": "--balloon ",
    "devices.hotplug": "--hotplug ",
    "dump_dtb": "--dump-dtb ",
    "save_on_exit": "--save-on-exit ",
    "trace": "--trace ",
    "reboot": "--reboot ",
    # of save and restore
    "parent": "--parent ",
    "track": "--track ",
    "force": "--force ",
    "clock": "--clock ",
    "reading": "--memory ",
    # where a command runs
    "host": "--host ",
    "host.kind": "--host ",
    "host.kernel": "--host-kernel ",
    "host.qemu": "--host-qemu ",
    "host.cpu": "--host-cpu ",
    "host.append": "--host-append ",
    # of sweep
    "sets": "--sve-vls-each=",
    "cpus": "--cpus ",
    "jobs": "--jobs ",
    "scheduler": "--scheduler ",
    "logs": "--logs ",
    "junit": "--junit ",
    # of reproductions
    "trust": "--trust ",
    "zcr": "--zcr ",
    "control": "--control ",
    "hack": "--hack ",
    "arm": "--arm ",
    "seconds": "--seconds ",
    "leave_out": "--leave-out ",
    "guest_max_vl": "--guest-max-vl=",
}


def option(field: str) -> str:
    """Return the option that sets a field, without a value."""
    return OPTIONS[field].rstrip(" =@")


def spell(text: str) -> str:
    """Return an error's text with options in place of fields; other words in backquotes stay."""

    def replace(found: re.Match[str]) -> str:
        field, value = found.groups()
        if field not in OPTIONS:
            return found[0]
        return OPTIONS[field] if value == "=" else option(field)

    return re.sub(r"`([a-z][a-z0-9_.]*)`(=(?:True|False)\b|=)?", replace, text)


def read_option(name: str, read: Callable[[str], _Value], text: str) -> _Value:
    """Read an option's text with a function; its UsageError then begins with the option."""
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{name}: {error.message}", hint=error.hint) from error
