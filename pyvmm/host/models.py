"""Ready-made emulated hosts by name: QEMU, machine, CPU, kernel and the words for the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyvmm.base.records import Record
from pyvmm.errors import UsageError
from pyvmm.host.settings import DEFAULT_CPU, DEFAULT_KERNEL, DEFAULT_QEMU


class HostModel(Record, kw_only=True):
    """The settings of one ready-made host, as in HostSettings, and what it is for."""

    about: str
    kernel: str = DEFAULT_KERNEL
    qemu: str = DEFAULT_QEMU
    cpu: str = DEFAULT_CPU
    machine: str = ""
    append: str = ""

    def settings(self) -> dict[str, str]:
        """Return the fields of HostSettings."""
        return {field: getattr(self, field) for field in FIELDS}


FIELDS: Final = ("kernel", "qemu", "cpu", "machine", "append")

# The CPUs have QEMU's names, which are Arm's.
MODELS: Final[dict[str, HostModel]] = {
    "a64fx": HostModel(about="SVE 128,256,512", cpu="a64fx", qemu="10"),
    "neoverse-n1": HostModel(about="no SVE, AArch32 in EL0 only", cpu="neoverse-n1", qemu="10"),
    "neoverse-n2": HostModel(about="SVE 128", cpu="neoverse-n2", qemu="10"),
    "neoverse-v1": HostModel(about="SVE 128,256", cpu="neoverse-v1", qemu="10"),
    "max": HostModel(about="every SVE length from 128 to 2048", cpu="max"),
    "hole-384": HostModel(about="every SVE length but 384", cpu="max,sve384=off"),
    "no-sve": HostModel(about="neither SVE nor SME", cpu="max,sve=off"),
    "sme-only": HostModel(about="SME without SVE", cpu="max,sve=off,sme=on", qemu="10"),
    "gicv2": HostModel(about="a GICv2 in place of a GICv3", machine="gic-version=2"),
    "mte": HostModel(about="memory tags", machine="mte=on", kernel="6.12", qemu="10"),
    "nested": HostModel(
        about="guests at EL2",
        kernel="7.2",
        qemu="11",
        # KVM unmaps what a guest hypervisor maps for its guests in steps of 1 GiB, over all address
        # bits.  With LPA2 they are 52, and each time takes minutes in emulation.
        cpu=f"{DEFAULT_CPU},lpa2=off",
        append="kvm-arm.mode=nested",
    ),
}


def find(name: str) -> HostModel:
    """Return the model of that name.

    Raises: UsageError, if there is none.
    """
    if name not in MODELS:
        raise UsageError(
            f"`host.model`={name}: not one of {', '.join(MODELS)}",
            hint="`pyvmm host list` shows what each one has",
        )
    return MODELS[name]


def combined(name: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of HostSettings of a model, with the ``given`` ones in their place.

    Raises: UsageError, if there is no such model.
    """
    return {**({} if name is None else find(name).settings()), **given}
