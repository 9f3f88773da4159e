"""lkvm's options for arm64 machines, as part of a Config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.base.units import parse_cpulist, parse_memory, parse_number, read_named
from pyvmm.commands._options import added
from pyvmm.config import IRQCHIPS, CpuRequest
from pyvmm.errors import UsageError

if TYPE_CHECKING:
    from pyvmm.cpumodel.model import CpuModel

HOST = "host"  # --cpu: the host's own CPU

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
    click.option("--no-pauth", is_flag=True, help="Hide pointer authentication from the guest."),
    click.option(
        "--cpu", metavar="MODEL|host", default="host",
        help="The guest's CPU: a file that `pyvmm cpu common` wrote, or the host's own.",
    ),
    click.option(
        "--cpu-id", multiple=True, metavar="FIELD=VALUE",
        help="The value of a field of an ID register: ID_AA64ISAR0_EL1.SHA3=0; repeatable.",
    ),
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


def cpu_model(options: dict[str, Any]) -> CpuModel | None:
    """Return the CPU model that options ask for; None for the host's own CPU.

    Raises: UsageError.
    """
    if options["cpu"] == HOST and not options["cpu_id"]:
        return None
    # lazily: few runs have a model
    from pyvmm.cpumodel.model import CpuModel, parse_field, read_model

    model = CpuModel() if options["cpu"] == HOST else read_model(Path(options["cpu"]))
    return model.replace(fields=model.fields | dict(map(parse_field, options["cpu_id"])))


def arm_config(options: dict[str, Any], model: CpuModel | None) -> dict[str, Any]:
    """Return the arguments of Config that the options set, with that CPU model.

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
            pauth=not options["no_pauth"] and (model is None or model.pauth is not False),
            ids={} if model is None else model.fields,
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
