"""All decode tables: their layout, their names, and that they decode any value."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.arm64 import sysregs
from pyvmm.arm64.bits import Bits, meaning
from pyvmm.arm64.esr import ExceptionClass
from pyvmm.arm64.fields import FIELDS, decode
from pyvmm.arm64.pstate import Mode32, Pstate, Pstate32

# KVM's registers that are not system registers, or have KVM's names
KVM_S_OWN = {
    "PSTATE", "FPCR", "FPSR", "SPSR_EL1", "SPSR_ABT", "SPSR_UND", "SPSR_IRQ", "SPSR_FIQ",
    "TIMER_CTL", "PTIMER_CTL", "PSCI_VERSION", *(f"CCSIDR{n}" for n in range(14)),
}  # fmt: skip
ISS_BITS = 25

LAYOUTS = {layout.__name__: layout for layout in [*FIELDS.values(), Pstate32]}
ISS_LAYOUTS = {item.layout.__name__: item.layout for item in ExceptionClass if item.layout}


def check_layout(layout: type[Bits], width: int) -> None:
    """Check that fields lie within the register and do not overlap."""
    fields = sorted(layout.fields(), key=lambda field: -field.hi)

    assert fields[0].hi < width
    assert all(above.lo > below.hi for above, below in pairwise(fields))
    assert len({field.name for field in fields}) == len(fields)


def check_values(layout: type[Bits]) -> None:
    """Check that every named value fits its field."""
    for field in layout.fields():
        assert max(field.values or [0]) <= field.largest, f"{layout.__name__}.{field.name}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_register_fields_lie_inside_and_do_not_overlap(name: str) -> None:
    check_layout(LAYOUTS[name], 64)
    check_values(LAYOUTS[name])


@pytest.mark.parametrize("name", ISS_LAYOUTS)
def test_syndrome_fields_lie_inside_and_do_not_overlap(name: str) -> None:
    check_layout(ISS_LAYOUTS[name], ISS_BITS)
    check_values(ISS_LAYOUTS[name])


def test_registers_have_the_names_of_the_encodings() -> None:
    assert FIELDS.keys() - KVM_S_OWN <= sysregs.ENCODINGS.keys()


def test_decode_knows_every_aarch64_id_register() -> None:
    implementation_defined = {"ID_AA64AFR0_EL1", "ID_AA64AFR1_EL1"}
    ids = {name for name in sysregs.ENCODINGS if name.startswith("ID_AA64")}

    assert ids - FIELDS.keys() == implementation_defined


def test_every_exception_class_has_a_meaning() -> None:
    assert all(meaning(item) for item in ExceptionClass)


@given(st.sampled_from(sorted(FIELDS)), st.integers(0, 2**64 - 1))
def test_decode_keeps_any_value_of_any_register(name: str, value: int) -> None:
    decoded = decode(name, value)

    assert decoded == value
    assert str(decoded).startswith(f"{value:#x} (")


def test_decode_returns_none_for_a_register_without_fields() -> None:
    assert decode("TPIDR_EL0", 5) is None


def test_decode_selects_the_pstate_layout_by_execution_state() -> None:
    aarch64, aarch32 = decode("PSTATE", 0x3C5), decode("SPSR_EL1", 0x1D3)

    assert isinstance(aarch64, Pstate)
    assert isinstance(aarch32, Pstate32)
    assert aarch32.M is Mode32.Supervisor
