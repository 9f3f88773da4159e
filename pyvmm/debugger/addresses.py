"""Virtual addresses of a vCPU that does not run, or of a saved one, through its own page tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from pyvmm.arm64.control import Sctlr, Tcr, Tcr2
from pyvmm.arm64.pagetable import Walk, access
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.arm64.translation import Read, Regime, translate
from pyvmm.errors import VmmError
from pyvmm.kvm import regs

SMALLEST_PAGE = 4096  # bytes
HCR_E2H = 1 << 34  # Source: Arm ARM DDI 0487, D23.2 "HCR_EL2"


class Cpu(regs.RegisterFile, Protocol):
    """A vCPU with its registers by id and by name."""

    id: int

    @property
    def sysreg(self) -> Mapping[str, Any]:
        """The system registers, by Arm's names."""


def regime_of(vcpu: Cpu) -> Regime:
    """Return the registers that translate a vCPU's addresses at its exception level.

    EL1 and EL0 share a regime. At EL2 a hypervisor with HCR_EL2.E2H has registers of the same
    layout.

    Raises: VmmError, for AArch32, and for EL2 without E2H while its MMU is on.
    """
    try:
        return _regime(vcpu)
    except KeyError as error:  # a saved vCPU may lack it
        raise VmmError(f"vCPU {vcpu.id} has no {error.args[0]}") from error


def _regime(vcpu: Cpu) -> Regime:
    pstate = Pstate(vcpu.get_one_reg(regs.PSTATE))
    if pstate.nRW:
        raise VmmError(f"vCPU {vcpu.id} is in AArch32, whose page tables pyvmm does not read")
    if pstate.M not in (Mode.EL2t, Mode.EL2h):
        return Regime.of(vcpu.sysreg)
    control = Sctlr(vcpu.sysreg["SCTLR_EL2"])
    has_e2h = bool(vcpu.sysreg["HCR_EL2"] & HCR_E2H)
    if control.M and not has_e2h:
        raise VmmError(
            f"vCPU {vcpu.id} is at EL2 without HCR_EL2.E2H: pyvmm does not read its tables"
        )
    tcr = Tcr(vcpu.sysreg["TCR_EL2"] if has_e2h else 0)
    ttbr0 = vcpu.sysreg["TTBR0_EL2"]
    ttbr1 = vcpu.sysreg["TTBR1_EL2"] if has_e2h else 0
    return Regime(sctlr=control, tcr=tcr, ttbr0=ttbr0, ttbr1=ttbr1)


def pieces(regime: Regime, read: Read, va: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the physical address and the length of each piece of a virtual range.

    Raises: GuestError, at the first page that is not mapped.
    """
    while length > 0:
        size = min(length, SMALLEST_PAGE - va % SMALLEST_PAGE)
        yield translate(va, regime, read).address, size
        va = va + size & (1 << 64) - 1
        length -= size


def translation(vcpu: Cpu, read: Read, va: int) -> dict[str, Any]:
    """Return where an address is, ready for JSON.

    Raises: VmmError, if the tables do not map it.
    """
    regime = regime_of(vcpu)
    found = translate(va, regime, read)
    reply: dict[str, Any] = {
        "virtual": f"{va:#018x}",
        "address": f"{found.address:#x}",
        "mmu": bool(regime.sctlr.M),
    }
    if not regime.sctlr.M:
        return reply
    about = _describe(vcpu, regime)(found.attributes)
    del about["is_global"]  # Translation's attributes lack it
    return {**reply, "page": 1 << found.shift, **about}


def page_tables(vcpu: Cpu, read: Read, start: int = 0) -> dict[str, Any]:
    """Return the ranges that a vCPU's tables map from an address on, ready for JSON.

    "next" is where the next call continues; None at the end.

    Raises: VmmError, if the tables cannot be walked.
    """
    regime = regime_of(vcpu)
    walk = Walk(regime, read)
    describe = _describe(vcpu, regime)
    ranges = [
        {
            "start": f"{found.start:#018x}",
            "end": f"{found.end:#018x}",
            "address": f"{found.address:#x}",
            "page": found.page,
            **describe(found.attributes),
        }
        for found in walk.ranges(start)
    ]
    return {
        "mmu": bool(regime.sctlr.M),
        "ranges": ranges,
        "next": walk.next,
        "unreadable_tables": walk.unreadable,
    }


def _describe(vcpu: Cpu, regime: Regime) -> Callable[[int], dict[str, Any]]:
    """Return the function that decodes attributes with a vCPU's registers."""
    at_el2 = Pstate(vcpu.get_one_reg(regs.PSTATE)).M in (Mode.EL2t, Mode.EL2h)
    level = "EL2" if at_el2 else "EL1"
    mair = vcpu.sysreg.get(f"MAIR_{level}", 0)
    tcr2 = Tcr2(vcpu.sysreg.get(f"TCR2_{level}", 0))
    known: dict[int, dict[str, Any]] = {}

    def describe(attributes: int) -> dict[str, Any]:
        if attributes not in known:
            found = access(attributes, regime, mair, indirect=bool(tcr2.PIE))
            known[attributes] = {
                "el1": found.el1,
                "el0": found.el0,
                "memory": found.memory,
                "is_global": found.is_global,
            }
        return dict(known[attributes])

    return describe
