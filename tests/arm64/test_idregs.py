"""ID registers of CPUs that QEMU models, with the values of its target/arm/."""

from __future__ import annotations

import pytest

from pyvmm.arm64.fields import decode
from pyvmm.arm64.idregs import IdAa64Mmfr0, IdAa64Pfr0, Implemented, PaRange

CORTEX_A57 = {
    "MIDR_EL1": 0x411F_D070,
    "CTR_EL0": 0x8444_C004,
    "CLIDR_EL1": 0x0A20_0023,
    "CCSIDR0": 0x701F_E00A,
    "DCZID_EL0": 4,
    "ID_AA64PFR0_EL1": 0x2222,
    "ID_AA64DFR0_EL1": 0x1030_5106,
    "ID_AA64ISAR0_EL1": 0x1_1120,
    "ID_AA64MMFR0_EL1": 0x1124,
}
A64FX = {
    "MIDR_EL1": 0x461F_0010,
    "ID_AA64PFR0_EL1": 0x1_0111_1111,
    "ID_AA64ZFR0_EL1": 0,
    "ID_AA64ISAR0_EL1": 0x1021_1120,
    "ID_AA64ISAR1_EL1": 0x1_0001,
    "ID_AA64MMFR0_EL1": 0x1122,
    "ID_AA64MMFR1_EL1": 0x1121_2100,
    "ID_AA64MMFR2_EL1": 0x1011,
}


def set_fields(processor: dict[str, int], name: str) -> dict[str, str]:
    """Return the fields that are not zero."""
    decoded = decode(name, processor[name])
    assert decoded is not None
    return {field.name: field.word(decoded) for field in decoded.fields() if field.get(decoded)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MIDR_EL1", "Implementer=ARM Variant=1 Architecture=0xf PartNum=0xd07"),
        ("CTR_EL0", "CWG=4 ERG=4 DminLine=4 L1Ip=PIPT IminLine=4"),
        ("CLIDR_EL1", "LoUU=1 LoC=2 LoUIS=1 Ctype2=UNIFIED Ctype1=SEPARATE"),
        ("CCSIDR0", "NumSets=0xff Associativity=1 LineSize=2"),
        ("DCZID_EL0", "BS=4"),
        ("ID_AA64PFR0_EL1", "EL3=AARCH32 EL2=AARCH32 EL1=AARCH32 EL0=AARCH32"),
        ("ID_AA64DFR0_EL1", "CTX_CMPs=1 WRPs=3 BRPs=5 PMUVer=IMP DebugVer=IMP"),
        ("ID_AA64ISAR0_EL1", "CRC32=IMP SHA2=SHA256 SHA1=IMP AES=PMULL"),
        ("ID_AA64MMFR0_EL1", "SNSMem=IMP BigEnd=IMP ASIDBits=BITS_16 PARange=BITS_44"),
    ],
)
def test_decode_of_a_cortex_a57_agrees_with_its_manual(name: str, expected: str) -> None:
    wanted = {
        field: f"{int(word, 0):#x}" if word[0] in "23456789" else word
        for field, _, word in (item.partition("=") for item in expected.split())
    }

    assert set_fields(CORTEX_A57, name) == wanted


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MIDR_EL1", "FUJITSU"),
        ("ID_AA64PFR0_EL1", "SVE=IMP GIC=IMP AdvSIMD=FP16 FP=FP16 EL3=IMP EL2=IMP EL1=IMP EL0=IMP"),
        ("ID_AA64ZFR0_EL1", ""),
        ("ID_AA64ISAR0_EL1", "RDM=IMP ATOMIC=IMP CRC32=IMP SHA2=SHA256 SHA1=IMP AES=PMULL"),
        ("ID_AA64ISAR1_EL1", "FCMA=IMP DPB=IMP"),
        ("ID_AA64MMFR0_EL1", "PARange=BITS_40"),
        ("ID_AA64MMFR1_EL1", "XNX=IMP SpecSEI=IMP PAN=PAN2 LO=IMP HPDS=HPDS2 VH=IMP"),
        ("ID_AA64MMFR2_EL1", "IESB=IMP UAO=IMP CnP=IMP"),
    ],
)
def test_decode_of_an_a64fx_agrees_with_its_manual(name: str, expected: str) -> None:
    fields = set_fields(A64FX, name)
    words = {f"{field}={word}" for field, word in fields.items()} | set(fields.values())

    assert set(expected.split()) <= words


def test_field_returns_a_member_for_a_named_value_and_else_a_number() -> None:
    pfr0 = IdAa64Pfr0(0x1_0111_0011)

    assert pfr0.SVE is Implemented.IMP
    assert IdAa64Mmfr0(5).PARange is PaRange.BITS_48
    assert not isinstance(IdAa64Pfr0(0x7 << 32).SVE, Implemented)
