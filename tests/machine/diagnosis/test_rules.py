"""What pyvmm says of a guest without progress, from looks at its vCPUs."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm import layout
from pyvmm.arm64.esr import Esr, ExceptionClass
from pyvmm.arm64.pstate import PSTATE_AT_RESET, Mode, Pstate
from pyvmm.kvm.uapi import MpState
from pyvmm.machine.diagnosis.rules import (
    BRANCH_TO_ITSELF,
    PLACES,
    POLLS,
    WFI,
    Gic,
    Look,
    VcpuLook,
    diagnose,
    elsewhere,
)

PC = 0x8008_0000
VBAR = 0x8009_0000
ABORT = Esr.of(EC=ExceptionClass.DABT_CUR, IL=1, ISS=0x44)  # a write, level 0
UNDEFINED = Esr.of(EC=ExceptionClass.UNKNOWN, IL=1)
QEMU_UART = 0x900_0000
OFF = {"mp_state": MpState.STOPPED}
WAITING = {"pc": PC, "blocked": True}
AT_RESET = VcpuLook(id=0, pc=PC, pstate=PSTATE_AT_RESET)
FAULTING = {"pc": 0x200, "elr": 0x200, "esr": UNDEFINED}
HANGING = {
    "pc": VBAR + 0x200, "vbar": VBAR, "elr": PC, "esr": ABORT, "far": 0x10,
    "words": (0, BRANCH_TO_ITSELF),
}  # fmt: skip

Fields = dict[str, Any]


def machine(*vcpus: Fields, gic: Gic | None = None) -> Look:
    """Return a look at a machine of vCPUs with those fields, at EL1 and with masked interrupts."""
    return Look(
        vcpus=tuple(AT_RESET.replace(id=number, **fields) for number, fields in enumerate(vcpus)),
        gic=gic,
    )


def said(*looks: Look, silent: bool = True, sure: bool = True) -> str | None:
    """Return what pyvmm says of a machine; one look is seen twice."""
    return diagnose([*looks, looks[-1]][:2], silent=silent, sure=sure)


def asleep(*vcpus: Fields, spis: int = 0, distributor: int = 0) -> Look:
    """Return a machine with a GIC."""
    return machine(*vcpus, gic=Gic(distributor=distributor, spis=spis))


def polling(reads: int = POLLS, writes: int = 0, **fields: Any) -> tuple[Look, Look]:
    """Return looks at a vCPU between which it accessed QEMU's UART."""
    counts = {"unclaimed read": reads + 3, "unclaimed write": writes + 1}
    before = machine({"exits": {"unclaimed read": 3, "unclaimed write": 1}, "unclaimed": QEMU_UART})
    return before, machine({"exits": counts, "unclaimed": QEMU_UART} | fields)


def test_diagnosis_reports_a_vcpu_without_vectors() -> None:
    assert said(machine(FAULTING)) == (
        "vCPU 0 faults for ever at 0x200: it has no exception vectors (VBAR_EL1 is 0)"
    )


def test_diagnosis_accepts_vectors_at_virtual_address_0() -> None:
    line = said(machine(FAULTING | {"mmu": True})) or ""

    assert line.startswith("vCPU 0 faults for ever at 0x200, in its exception vectors: ")


def test_diagnosis_reports_the_cause_when_vectors_fault() -> None:
    entry = VBAR + 0x200
    vcpu = {"pc": entry, "elr": entry + 8, "vbar": VBAR, "esr": UNDEFINED}

    assert said(machine({}, vcpu)) == (
        f"vCPU 1 faults for ever at {entry + 8:#x}, in its exception vectors: "
        "unknown reason, as for an undefined instruction"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"elr": PC},  # an exception from elsewhere has just reached its vector
        {"pc": PC},  # the handler is elsewhere
        {"pstate": Pstate.of(M=Mode.EL0t)},
        {"pstate": Pstate.of(M=Mode.EL2h)},
        {"pstate": Pstate.of(nRW=1)},
        {"pc": 0x280, "elr": 0x280},  # an interrupt's vector
    ],
)
def test_diagnosis_reports_no_fault_loop_unless_the_vector_faults(other: Fields) -> None:
    assert said(machine(FAULTING | other)) is None


def test_diagnosis_reports_no_fault_loop_when_the_fault_moves() -> None:
    assert said(machine(FAULTING), machine(FAULTING | {"elr": 0x204})) is None
    assert said(machine(FAULTING | {"pc": PC}), machine(FAULTING)) is None


def test_diagnosis_reports_a_vcpu_that_hangs_in_a_vector() -> None:
    assert said(machine(HANGING)) == (
        f"vCPU 0 stays at {VBAR + 0x200:#x}, in its exception vectors, after an exception at "
        f"{PC:#x}: data abort, from the same exception level: write, level 0 translation fault "
        "(FAR_EL1 0x10)"
    )


def test_diagnosis_reports_no_hang_in_a_vector_just_reached() -> None:
    assert said(machine({}), machine(HANGING)) is None


@pytest.mark.parametrize(
    "other",
    [
        {"pc": VBAR + 0x280},  # of an interrupt: ESR_EL1 has another cause
        {"pc": VBAR + 0x800},  # behind the vectors
        {"words": None},
        {"words": (BRANCH_TO_ITSELF, WFI)},
        {"pstate": PSTATE_AT_RESET.replace(I=0)},  # an interrupt may continue
    ],
)
def test_diagnosis_reports_no_hang_when_something_can_continue(other: Fields) -> None:
    assert said(machine(HANGING | other)) is None


def test_diagnosis_reports_that_every_vcpu_is_off() -> None:
    assert said(machine(OFF, OFF), silent=False) == "every vCPU is off by PSCI"
    assert said(machine(OFF, {}), silent=False) is None


def test_diagnosis_reports_polling_of_another_machines_address() -> None:
    assert said(*polling(), silent=False) == (
        f"vCPU 0 polls {QEMU_UART:#x}, where QEMU's virt machine has its UART; "
        f"here it is at {layout.UART.base:#x}"
    )


def test_diagnosis_reports_endless_writes_without_a_device() -> None:
    nowhere = {"unclaimed": 0x0D00_0010}
    before, after = polling(0, POLLS, **nowhere)

    assert said(machine({"exits": before.vcpus[0].exits} | nowhere), after, silent=False) == (
        "vCPU 0 writes for ever to 0xd000010, where there is no device and no RAM"
    )


@pytest.mark.parametrize("looks", [polling(POLLS - 1), polling(unclaimed=QEMU_UART + 4)])
def test_diagnosis_reports_no_polling_when_accesses_are_few_or_move(
    looks: tuple[Look, Look],
) -> None:
    assert said(*looks, silent=False) is None


def test_diagnosis_reports_an_access_to_another_machines_device() -> None:
    look = machine({"exits": {"unclaimed write": 1}, "unclaimed": QEMU_UART})

    assert said(look) == (
        f"vCPU 0 accessed {QEMU_UART:#x}, where QEMU's virt machine has its UART; "
        f"here it is at {layout.UART.base:#x}"
    )
    assert said(look, silent=False) is None
    assert said(machine({"exits": {"unclaimed write": 1}, "unclaimed": 0x0D00_0000})) is None


def test_place_of_each_machine_is_found_from_its_first_to_its_last_byte() -> None:
    for place in PLACES:
        for address in (place.base, place.base + place.size - 1):
            look = machine({"exits": {"unclaimed read": 1}, "unclaimed": address})

            assert f"{place.machine} has its {place.part}" in (elsewhere([look]) or "")


def test_places_of_other_machines_have_no_device_here() -> None:
    regions = [
        layout.RTC, layout.PVTIME, layout.EXIT, layout.GICD, layout.gicr(8), layout.its(8),
        *map(layout.uart, range(layout.UART_COUNT)),
        *map(layout.virtio, range(layout.VIRTIO_COUNT)),
    ]  # fmt: skip

    assert not [
        (place, region)
        for place in PLACES
        for region in regions
        if place.base < region.end and region.base < place.base + place.size
    ]


@pytest.mark.parametrize(
    "vcpu",
    [
        WAITING,
        {"words": (WFI, 0)},  # without KVM's count
        WAITING | {"ppis": 1 << 27},  # the GIC is off
    ],
)
def test_diagnosis_reports_a_wait_with_no_interrupt_enabled(vcpu: Fields) -> None:
    assert said(asleep(OFF, vcpu)) == (
        f"vCPU 1 waits in WFI with no interrupt enabled (PC {PC:#x})"
    )


@pytest.mark.parametrize(
    "look",
    [
        asleep(WAITING | {"timer": True}),
        asleep(WAITING | {"priority": 0xF0, "ppis": 1 << 27}, distributor=2),
        asleep(WAITING | {"priority": 0xF0}, distributor=2, spis=1),
        asleep(WAITING, {}),  # the other vCPU runs
        asleep({"words": (0, WFI)}),
        machine(WAITING),  # without a GIC whose registers are known
    ],
)
def test_diagnosis_reports_no_wait_that_something_can_end(look: Look) -> None:
    assert said(look) is None


@pytest.mark.parametrize("other", [{"distributor": 0}, {"spis": 0}])
def test_diagnosis_reports_a_wait_when_the_gic_masks_every_interrupt(other: Fields) -> None:
    vcpu = WAITING | {"priority": 0xF0}

    assert said(asleep(vcpu, **{"distributor": 2, "spis": 1})) is None
    assert said(asleep(vcpu, **{"distributor": 2, "spis": 1} | other)) is not None
    assert said(asleep(WAITING, distributor=2, spis=1)) is not None  # ICC_PMR_EL1 masks all


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"exits": {"INTR": 2}}, f"runs at PC {PC:#x} without an exit"),
        ({}, WAITING, f"runs at PC {PC:#x} without an exit"),
        (WAITING, WAITING, f"waits for an interrupt at PC {PC:#x}"),
        (
            {"exits": {"uart0 read": 900}},
            {"exits": {"uart0 read": 901, "rtc read": 3}},
            f'runs at PC {PC:#x}, most of its exits are "rtc read"',
        ),
    ],
)
def test_diagnosis_describes_a_silent_guest_without_a_known_cause(
    before: Fields, after: Fields, words: str
) -> None:
    looks = machine(before), machine(after)

    assert said(*looks, sure=False) == f"the guest has printed nothing: vCPU 0 {words}"
    assert said(*looks, sure=True) is None
    assert said(*looks, sure=False, silent=False) is None


def test_diagnosis_reports_only_the_reset_of_a_guest_that_has_reset_again() -> None:
    looks = [machine(FAULTING).replace(resets=3, was_reset=True)] * 2

    assert said(*looks, sure=False) == "the guest has printed nothing since reset 3, and resets"
    assert said(*looks, sure=False, silent=False) is None


def test_diagnosis_says_since_which_reset_the_guest_is_silent() -> None:
    looks = [machine({}).replace(resets=3)] * 2

    words = said(*looks, sure=False)

    assert words is not None
    assert words.startswith("the guest has printed nothing since reset 3: vCPU 0 runs")
