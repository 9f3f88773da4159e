"""Fields and the options that set them: an error names the field, the command line the option.

An error has a field in backquotes: `vcpus`, or `sve.vls`=128,256. The name is a path from Config or
one of its records, a path from HostSettings (`host.cpu`), or a function's argument.
"""

from __future__ import annotations

import re

# Fields whose options have other names; each ends with the text before its value.
OPTIONS = {
    "vcpus": "-c ",
    "memory": "-m ",
    "initrd": "-i ",
    "ram_base": "-m SIZE@",
    "sve.required": "--sve ",
    "sve.off": "--no-sve ",
    "sve.vls": "--sve-vls=",
    "sve.max_vl": "--sve-max-vl=",
    "cpu.mte": "--disable-mte ",
    "cpu.pvtime": "--no-pvtime ",
    "cpu.pauth": "--no-pauth ",
    "cpu.ids": "--cpu-id ",
    "fast_mmio": "--no-fast-mmio ",
    "vmgenid": "--no-vmgenid ",
    "timer_hz": "--override-bad-firmware-cntfrq ",
    "ttys": "--tty ",
    "timeout_s": "--timeout ",
    "devices.disk": "-d ",
    "reading": "--memory ",
    "host.kind": "--host ",
    "host.kernel": "--host-kernel ",
    "host.qemu": "--host-qemu ",
    "host.cpu": "--host-cpu ",
    "host.machine": "--host-machine ",
    "host.model": "--host-model ",
    "host.append": "--host-append ",
    "sandbox": "--no-sandbox ",
    "pattern": "-k ",
    "sets": "--sve-vls-each=",
    "guest_max_vl": "--guest-max-vl=",
}
# Fields whose options have the same name.
_SAME = """
cpu.pmu cpu.nested cpu.e2h0 cpu.aarch32 irqchip params nodefaults console virtio_transport
kaslr_seed vcpu_affinity hugetlbfs name devices.pmem devices.rng devices.balloon devices.hotplug
devices.share devices.vsock dump_dtb save_on_exit trace reboot parent track force clock host cpus
jobs scheduler logs junit trust zcr control hack arm seconds leave_out rounds hold_ms page cpu
"""
OPTIONS |= {field: f"--{field.rpartition('.')[2].replace('_', '-')} " for field in _SAME.split()}


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
