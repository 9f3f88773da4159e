"""lkvm's options for arm64 machines, as part of a Config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyvmm.base.units import parse_cpulist, parse_memory, parse_number, read_named
from pyvmm.commands._options import added
from pyvmm.config import IRQCHIPS, CpuRequest
from pyvmm.errors import UsageError

# arm_config() converts them.
arm_options = added(
    click.option(
        "-m", "--mem", metavar="SIZE[@ADDR]", show_default="64M x (vCPUs + 3)",
        help="Guest memory in MiB, or with a suffix B K M G T P. ADDR is its first address.",
    ),
    click.option(
        "--irqchip", metavar="|".join(IRQCHIPS), show_default="the best the host has",
        help="The interrupt controller.",
    ),
    click.option("--pmu", is_flag=True, help="Give the guest a performance monitor."),
    click.option("--disable-mte", is_flag=True, help="Hide memory tagging from the guest."),
    click.option("--no-pvtime", is_flag=True, help="Hide stolen time from the guest."),
    click.option(
        "--nested", is_flag=True, help="Start the guest at EL2, so that it can be a hypervisor."
    ),
    click.option("--e2h0", is_flag=True, help="With --nested: give the guest an EL2 without VHE."),
    click.option("--aarch32", is_flag=True, help="Start the guest in 32-bit state."),
    click.option("--kaslr-seed", metavar="N", help="The seed of Linux's address randomization."),
    click.option(
        "--vcpu-affinity", metavar="LIST", help="The host's CPUs to run vCPUs on: 0-3,8."
    ),
    click.option(
        "--hugetlbfs", metavar="DIR", type=click.Path(path_type=Path),
        help="Take guest memory from the hugetlbfs mounted at DIR.",
    ),
    click.option(
        "--override-bad-firmware-cntfrq", metavar="HZ",
        help="The timers' frequency, if firmware set CNTFRQ_EL0 wrongly.",
    ),
)  # fmt: skip

# Options that are text: the argument of Config, and the function that reads the text.
_PARSED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--mem": ("memory", parse_memory),
    "--vcpu-affinity": ("vcpu_affinity", parse_cpulist),
    "--kaslr-seed": ("kaslr_seed", lambda text: parse_number(text, "a seed")),
    "--override-bad-firmware-cntfrq": ("timer_hz", lambda text: parse_number(text, "a frequency")),
}


def arm_config(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of Config that the options set.

    Raises: UsageError, for text that cannot be read.
    """
    if options["irqchip"] == "gicv2m":
        raise UsageError(
            "--irqchip gicv2m: its messages need PCI, which pyvmm does not have",
            hint="use --irqchip gicv2",
        )
    config: dict[str, Any] = {
        "irqchip": options["irqchip"],
        "hugetlbfs": options["hugetlbfs"],
        "cpu": CpuRequest(
            **{name: options[name] for name in ("pmu", "nested", "e2h0", "aarch32")},
            mte=not options["disable_mte"],
            pvtime=not options["no_pvtime"],
        ),
    }
    for option, (argument, read) in _PARSED.items():
        text = options[option.strip("-").replace("-", "_")]
        if text is not None:
            config[argument] = read_named(option, read, text)
    if "memory" in config:
        config["memory"], base = config["memory"]
        config |= {} if base is None else {"ram_base": base}
    return config
