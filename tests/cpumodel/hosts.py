"""Made-up hosts: two CPUs with different features, as ``pyvmm doctor --json`` describes them."""

from __future__ import annotations

from typing import Any

from pyvmm.arm64 import idrules
from pyvmm.cpumodel.host import CpuHost

ALL = (1 << 64) - 1
OLD = {
    "MIDR_EL1": 0x461F_0010,
    "ID_AA64PFR0_EL1": 0x1_0111_1111,
    "ID_AA64ISAR0_EL1": 0x1021_1120,
    "ID_AA64ISAR1_EL1": 0x1_0001,
    "ID_AA64MMFR0_EL1": 0x1122,
    "ID_AA64ZFR0_EL1": 0,
    "CTR_EL0": 0x8444_C004,
}
NEW = {
    "MIDR_EL1": 0x411F_D402,
    "ID_AA64PFR0_EL1": 0x1101_1001_2111_1111,
    "ID_AA64ISAR0_EL1": 0x0221_1001_1021_2120,
    "ID_AA64ISAR1_EL1": 0x11_0012_2050,
    "ID_AA64MMFR0_EL1": 0x1125,
    "ID_AA64ZFR0_EL1": 0,
    "CTR_EL0": 0xB444_C004,
}


def host(registers: dict[str, int], **other: Any) -> CpuHost:
    """Return a host whose KVM can change every field, if not said otherwise."""
    given: dict[str, Any] = {
        "writable": dict.fromkeys(registers, ALL),
        "vls": frozenset({128, 256}),
        "counter_hz": 62_500_000,
    }
    return CpuHost(registers=registers, **given | other)


def document(of: CpuHost) -> dict[str, Any]:
    """Return the parts of doctor's JSON that describe the host."""
    return {
        "kvm": {
            "sve_vector_lengths": sorted(of.vls),
            "cpu_features": "PAUTH,PMU" if of.pauth else "PMU",
            "counter_hz": of.counter_hz,
        },
        "registers": {name: f"{value:#x}" for name, value in of.registers.items()},
        "writable_id_bits": {name: f"{mask:#x}" for name, mask in of.writable.items()},
    }


def without(register: str, field: str) -> dict[str, int]:
    """Return masks of writable bits that lack one field."""
    masks = dict.fromkeys(NEW, ALL)
    found = idrules.find(f"{register}.{field}")
    assert found is not None
    masks[register] &= ~found.mask
    return masks
