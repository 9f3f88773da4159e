"""The rules of ID register fields, compared with the kernel's and with the values of real CPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pyvmm.arm64 import idrules, sysregs
from pyvmm.arm64.bits import Field
from pyvmm.arm64.idrules import Rule
from pyvmm.host.progress import Progress
from tests.selftests import sources

CPUFEATURE = "arch/arm64/kernel/cpufeature.c"
KERNELS = {"FTR_LOWER_SAFE": Rule.LOWER, "FTR_HIGHER_SAFE": Rule.HIGHER,
           "FTR_HIGHER_OR_ZERO_SAFE": Rule.HIGHER_OR_ZERO, "FTR_EXACT": Rule.EXACT}  # fmt: skip
# Fields in which pyvmm differs from the kernel on purpose.  The kernel combines the CPUs of one
# machine, where it can handle some differences itself; a guest's programs cannot.
OTHERWISE = {
    "DCZID_EL0.BS": "a program that zeroes memory by DC ZVA may read the size once",
    "ID_AA64DFR0_EL1.DebugVer": "the kernel uses no version above its own",
    "ID_AA64ISAR2_EL1.BC": "a hint: CPUs without it ignore it",
}


def named(register: str, name: str) -> Field:
    field = idrules.find(f"{register}.{name}")
    assert field is not None
    return field


def kernels_rules(source: str) -> Iterator[tuple[str, str, Rule, bool]]:
    """Yield register, field, rule, and whether the field is signed, from the kernel's tables."""
    entry = re.compile(r"(S_)?ARM64_FTR_BITS\((.*?)\),\s*(?:/\*.*?\*/)?\n", re.DOTALL)
    tables = {
        found[1]: found[2]
        for found in re.finditer(r"arm64_ftr_bits (ftr_\w+)\[\] = \{(.*?)\n\};", source, re.DOTALL)
    }
    used = re.findall(r"ARM64_FTR_REG(?:_OVERRIDE)?\(SYS_(\w+),\s*(ftr_\w+)", source)
    for register, table in [*used, ("CTR_EL0", "ftr_ctr")]:
        for signed, inner in entry.findall(tables[table]):
            kind = re.search("|".join(sorted(KERNELS, key=len, reverse=True)), inner)
            name = re.search(r"(\w+)_SHIFT", inner)
            if kind is not None and name is not None:
                short = register.removesuffix("_EL1").removesuffix("_EL0")
                field = re.sub(f"^{short}_(EL1_|EL0_)?", "", name[1])
                yield register, field, KERNELS[kind[0]], bool(signed)


@pytest.mark.parametrize(
    "version",
    ["6.1", *(pytest.param(v, marks=pytest.mark.matrix) for v in ("6.12", "7.2"))],
)
def test_rules_agree_with_the_kernels(version: str) -> None:
    source = (sources(Progress(), version) / CPUFEATURE).read_text()
    compared, differ = 0, []

    for register, name, rule, signed in kernels_rules(source):
        fields = {field.name.lower(): field for field in idrules.fields(register)}
        field = fields.get(name.lower())
        where = f"{register}.{name}"
        if field is None or idrules.is_by_feature(register, field.name) or where in OTHERWISE:
            continue
        compared += 1
        mine = idrules.rule(register, field.name)
        theirs = Rule.SIGNED if signed and rule is Rule.LOWER else rule
        # an EXACT field whose safe value is 0 is a field whose lower value is safe
        if mine is not theirs and not (theirs is Rule.EXACT and field.hi == field.lo):
            differ.append((where, mine, theirs))

    assert compared > 90
    assert [d for d in differ if not d[0].startswith("ID_AA64SMFR0")] == []


@pytest.mark.parametrize(
    ("where", "a", "b", "both"),
    [
        ("ID_AA64ISAR0_EL1.AES", 2, 1, 1),
        ("ID_AA64PFR0_EL1.FP", 0xF, 1, 0xF),  # NI and half precision
        ("ID_AA64PFR0_EL1.FP", 0, 1, 0),
        ("ID_AA64MMFR0_EL1.TGran4", 1, 0xF, 0xF),
        ("ID_AA64MMFR1_EL1.SpecSEI", 0, 1, 1),
        ("CTR_EL0.CWG", 4, 5, 5),
        ("CTR_EL0.CWG", 4, 0, 0),
        ("CTR_EL0.DminLine", 4, 6, 4),
        ("CTR_EL0.L1Ip", 3, 2, 2),
        ("ID_AA64MMFR0_EL1.TGran4_2", 2, 0, 1),
        ("ID_AA64MMFR4_EL1.E2H0", 0xE, 0xF, 0xE),
        ("ID_AA64ISAR1_EL1.APA", 1, 5, None),
        ("MIDR_EL1.PartNum", 0xD40, 0x1, 0xD40),
    ],
)
def test_value_that_two_hosts_keep(where: str, a: int, b: int, both: int | None) -> None:
    register, _, name = where.partition(".")

    assert idrules.combined(register, named(register, name), a, b) == both


@pytest.mark.parametrize("register", sorted(filter(idrules.is_identification, sysregs.ENCODINGS)))
def test_fields_cover_every_bit_once(register: str) -> None:
    masks = [field.mask for field in idrules.fields(register)]

    assert sum(masks) == (1 << 64) - 1
    assert len({field.name for field in idrules.fields(register)}) == len(masks)


def test_rules_and_features_name_existing_fields() -> None:
    tables = [*idrules.RULES.items(), *idrules.BY_FEATURE.items()]
    named = [(register, field) for register, fields in tables for field in fields if field]

    assert [name for name in named if idrules.find(".".join(name)) is None] == []


@pytest.mark.parametrize("name", ["SCTLR_EL1.M", "ID_AA64ISAR0_EL1.NOPE", "X0", "", "."])
def test_name_of_no_field_finds_none(name: str) -> None:
    assert idrules.find(name) is None
