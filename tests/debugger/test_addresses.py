"""Addresses of a saved vCPU, and of one at EL2."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.arm64.control import Sctlr, Tcr
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.debugger.addresses import page_tables, pieces, regime_of, translation
from pyvmm.errors import GuestError, VmmError
from pyvmm.kvm import regs
from tests.arm64.test_pagetable import linear, regime


class FakeCpu:
    """A vCPU with these registers."""

    id = 3

    def __init__(self, pstate: int = Pstate.of(M=Mode.EL1h), **sysregs: int) -> None:
        self.pstate = pstate
        self.sysreg: dict[str, Any] = sysregs

    def get_one_reg(self, reg_id: int) -> int:
        assert reg_id == regs.PSTATE
        return self.pstate

    def set_one_reg(self, reg_id: int, value: int) -> None:
        raise NotImplementedError

    def get_reg_list(self) -> list[int]:
        return []


def el1() -> FakeCpu:
    chosen = regime()
    return FakeCpu(
        SCTLR_EL1=chosen.sctlr, TCR_EL1=chosen.tcr, TTBR0_EL1=chosen.ttbr0,
        TTBR1_EL1=chosen.ttbr1, MAIR_EL1=0xFF,
    )  # fmt: skip


def test_translation_has_the_page_and_what_may_access_it() -> None:
    assert translation(el1(), linear().read, 0x20_0123) == {
        "virtual": "0x0000000000200123", "address": "0x100000123", "mmu": True,
        "page": 0x20_0000, "el1": "rwx", "el0": "--x", "memory": "normal",
    }  # fmt: skip


def test_translation_of_an_address_without_a_page_is_an_error() -> None:
    with pytest.raises(GuestError, match="0x50000: level 3 translation fault"):
        translation(el1(), linear().read, 0x5_0000)


def test_page_tables_lists_ranges() -> None:
    reply = page_tables(el1(), linear().read)

    assert [found["start"] for found in reply["ranges"]] == ["0x" + "0" * 16, "0x0000000000200000"]
    assert reply["next"] is None


def test_pieces_follow_the_pages_and_wrap_at_the_top() -> None:
    ram = linear()
    ram.put(0x40000, 1, 0x9000 | 0x403)

    assert list(pieces(regime(), ram.read, 0xFFC, 8)) == [((1 << 32) + 0xFFC, 4), (0x9000, 4)]


def test_regime_at_el2_is_that_of_el2() -> None:
    registers = {"SCTLR_EL2": Sctlr.of(M=1), "TCR_EL2": Tcr.of(T0SZ=16), "TTBR0_EL2": 1 << 16,
                 "TTBR1_EL2": 5, "HCR_EL2": 1 << 34}  # fmt: skip
    cpu = FakeCpu(Pstate.of(M=Mode.EL2h), **registers)

    assert (regime_of(cpu).ttbr0, regime_of(cpu).ttbr1) == (1 << 16, 5)
    cpu.sysreg["HCR_EL2"] = 0
    with pytest.raises(VmmError, match=r"vCPU 3 is at EL2 without HCR_EL2\.E2H"):
        regime_of(cpu)


def test_regime_of_aarch32_is_refused() -> None:
    with pytest.raises(VmmError, match="AArch32"):
        regime_of(FakeCpu(Pstate.of(nRW=1)))
