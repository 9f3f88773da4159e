"""The check whether a host can restore a snapshot, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.errors import UsageError
from pyvmm.kvm import regs
from pyvmm.machine.plan import Feature
from pyvmm.snapshot.check import CheckedPart, Compatibility, machine_rows, predicted, register_row
from pyvmm.snapshot.hostlimits import RestoreLimits, read_limits_file
from pyvmm.snapshot.restorestate import Loss, RestoreReport
from pyvmm.snapshot.state import State
from tests.snapshot import sample

PFR0 = regs.lookup("ID_AA64PFR0_EL1", sysregs.ENCODINGS)
MMFR3 = regs.lookup("ID_AA64MMFR3_EL1", sysregs.ENCODINGS)
ISAR0 = regs.lookup("ID_AA64ISAR0_EL1", sysregs.ENCODINGS)
FULL = RestoreLimits(
    max_vcpus=8,
    ipa_bits=40,
    vls=frozenset({128, 256, 512}),
    features=frozenset({Feature.PAUTH, Feature.PVTIME, Feature.PMU}),
    gics=frozenset({"gicv3"}),
    counter_hz=62_500_000,
)


def rows(state: State, **other: Any) -> dict[str, CheckedPart]:
    limits = FULL.replace(**other)
    return {row.name: row for row in machine_rows(state, limits)}


def test_check_is_ok_in_every_row_on_an_equal_host() -> None:
    found = rows(sample.state())

    assert {row.compatibility for row in found.values()} == {Compatibility.OK}


@pytest.mark.parametrize(
    ("other", "name", "compatibility", "words"),
    [
        ({"max_vcpus": 1}, "vCPUs", Compatibility.IMPOSSIBLE, "2, this host supports up to 1"),
        ({"ipa_bits": 31}, "guest physical address bits", Compatibility.IMPOSSIBLE, "32, this"),
        ({"vls": frozenset({128})}, "SVE", Compatibility.IMPOSSIBLE, "128,256 bits"),
        ({"vls": frozenset()}, "SVE", Compatibility.IMPOSSIBLE, "this host has no SVE"),
        (
            {"features": frozenset()},
            "CPU features",
            Compatibility.IMPOSSIBLE,
            "pointer authentication",
        ),
        (
            {"gics": frozenset({"gicv2"})},
            "GIC",
            Compatibility.IMPOSSIBLE,
            "this host supports: gicv2",
        ),
        ({"counter_hz": 125_000_000}, "timer frequency", Compatibility.REFUSED, "2 times as fast"),
    ],
)
def test_check_reports_each_limit_of_a_host_in_its_row(
    other: dict[str, Any], name: str, compatibility: Compatibility, words: str
) -> None:
    found = rows(sample.state(), **other)

    assert found[name].compatibility is compatibility
    assert words in found[name].reason
    others = {row.compatibility for row in found.values() if row.name != name}
    assert others == {Compatibility.OK}


@pytest.mark.parametrize(
    ("asked", "compatibility", "words"),
    [
        ({0, 1}, Compatibility.OK, "vCPUs run on 0-1"),
        ({1, 7}, Compatibility.REFUSED, "vCPUs run on 1,7, and this host has no CPU 7"),
    ],
)
def test_check_compares_the_cpus_that_vcpus_are_bound_to(
    asked: set[int], compatibility: Compatibility, words: str
) -> None:
    state = sample.state()
    state = state.replace(config=state.config.replace(vcpu_affinity=frozenset(asked)))

    row = rows(state, cpus=frozenset({0, 1}))["CPUs"]

    assert (row.compatibility, row.reason) == (compatibility, words)


def test_check_refuses_a_set_with_a_hole_if_the_host_has_that_length() -> None:
    holed = frozenset({128, 256, 512})
    vcpus = tuple(v.replace(vls=holed) for v in sample.state().vcpus)
    state = sample.state().replace(vcpus=vcpus)

    row = rows(state, vls=frozenset({128, 256, 384, 512}))["SVE"]

    assert row.compatibility is Compatibility.IMPOSSIBLE
    assert "384 is left out" in row.reason


@pytest.mark.parametrize(
    ("loss", "saved", "compatibility"),
    [
        (Loss(0, regs.PSCI_VERSION, "gone", missing=True), 1, Compatibility.HARMLESS),
        (Loss(0, regs.PSCI_VERSION, "refused", found=1), 0x10003, Compatibility.HARMLESS),
        (Loss(0, regs.ccsidr(3), "gone", missing=True), 7, Compatibility.HARMLESS),
        (Loss(0, regs.PTIMER_CTL, "gone", missing=True), 2, Compatibility.HARMLESS),
        (Loss(0, regs.PTIMER_CTL, "gone", missing=True), 1, Compatibility.REFUSED),
        (Loss(0, sample.ZCR, "gone", missing=True), 0, Compatibility.HARMLESS),
        (Loss(0, sample.ZCR, "gone", missing=True), 1, Compatibility.REFUSED),
        (Loss(0, regs.ccsidr(1), "refused"), 7, Compatibility.HARMLESS),
        (Loss(0, regs.PC, "reads back as 0", found=0), 1, Compatibility.REFUSED),
        (Loss(0, ISAR0, "refused", found=0x20), 0x10, Compatibility.HARMLESS),
        (Loss(0, ISAR0, "refused", found=0x10), 0x20, Compatibility.REFUSED),
        # FP and AdvSIMD are signed: 15 means that the CPU lacks them, 0 that it has them.
        (Loss(0, PFR0, "refused", found=0x0000_0000), 0xFF_0000, Compatibility.HARMLESS),
        (Loss(0, PFR0, "refused", found=0xFF_0000), 0x0000_0000, Compatibility.REFUSED),
    ],
)
def test_check_decides_whether_a_lost_register_matters(
    loss: Loss, saved: int, compatibility: Compatibility
) -> None:
    assert register_row(loss, {loss.reg_id: saved}).compatibility is compatibility


@pytest.mark.parametrize(
    ("mmfr3", "compatibility"),
    [
        ({MMFR3: 0}, Compatibility.HARMLESS),
        ({MMFR3: 1 << 16}, Compatibility.HARMLESS),  # another feature
        ({MMFR3: 1 << 8}, Compatibility.REFUSED),  # S1PIE: the guest may use it
        ({}, Compatibility.REFUSED),  # MMFR3 is unknown
    ],
)
@pytest.mark.parametrize("name", ["PIR_EL1", "PIRE0_EL1"])
def test_check_ignores_a_register_of_a_feature_that_the_cpu_lacks(
    name: str, mmfr3: dict[int, int], compatibility: Compatibility
) -> None:
    reg_id = regs.lookup(name, sysregs.ENCODINGS)
    loss = Loss(0, reg_id, "gone", missing=True)

    assert register_row(loss, {reg_id: 0x1DE7EC7EDBADC0DE, **mmfr3}).compatibility is compatibility


def test_check_predicts_lost_registers_from_host_limits() -> None:
    state = sample.state()
    registers = {k: v for k, v in state.vcpus[0].registers.items() if k != sample.ZCR}

    (row,) = predicted(state, FULL.replace(registers=registers))

    assert (row.name, row.compatibility) == ("ZCR_EL1", Compatibility.REFUSED)


DOCTOR: dict[str, Any] = {
    "schema": 1,
    "kvm": {
        "vcpus_at_most": 8, "guest_physical_address_bits": 40, "counter_hz": 62_500_000,
        "sve_vector_lengths": [128, 256, 512], "cpu_features": "PAUTH,PMU,PVTIME",
        "gicv2": False, "gicv3": True, "gicv3_its": False,
    },
    "registers": {"ID_AA64PFR0_EL1": "0x11", "PTIMER_CTL": "0x0"},
}  # fmt: skip


def test_host_limits_are_read_from_the_json_of_doctor(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text(json.dumps(DOCTOR))

    limits = read_limits_file(tmp_path / "host.json")

    expected = {PFR0: 0x11, regs.PTIMER_CTL: 0}
    assert limits == FULL.replace(registers=expected)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"kvm": 1}', json.dumps({**DOCTOR, "registers": {"X": "0x0"}})]
)
def test_host_limits_file_with_other_content_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)

    with pytest.raises(UsageError, match="not the JSON that `pyvmm doctor` prints"):
        read_limits_file(tmp_path / "host.json")


def test_report_of_a_restore_has_one_line_for_all_harmless_losses() -> None:
    report = RestoreReport(
        losses=(Loss(0, regs.PC, "was 1"), Loss(1, regs.PC, "was 1")),
        gic=("GICD_IIDR differs",),
        harmless=(
            Loss(0, regs.ccsidr(1), "is missing on this host"),
            Loss(1, regs.ccsidr(1), "is missing on this host"),
            Loss(0, regs.PSCI_VERSION, "was 2 and reads back as 1"),
        ),
    )

    assert list(report.lines()) == [
        "PC of every vCPU was 1",
        "GICD_IIDR differs",
        "CCSIDR1, PSCI_VERSION: harmless to the guest",
    ]
