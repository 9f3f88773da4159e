"""A vCPU's registers as text."""

from __future__ import annotations

import re

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.arm64.aarch32 import name32
from pyvmm.commands.registers.show import NEVER_WRITTEN, PARTS, WIDTH, show_registers
from pyvmm.commands.registers.words import explain
from pyvmm.machine.registerdump import PendingEvents, VcpuRegisters

NO_EVENTS = PendingEvents(
    serror_pending=False, serror_has_esr=False, serror_esr="0x0", ext_dabt_pending=False
)


def text(value: int, bits: int = 64) -> str:
    return f"{value:#0{2 + bits // 4}x}"


def read(
    registers: dict[str, str], vls: tuple[int, ...] = (), current_vl: int = 0
) -> VcpuRegisters:
    """Make a vCPU's reply to `pyvmm debug`."""
    return VcpuRegisters(
        vcpu=0,
        mp_state="RUNNABLE",
        events=NO_EVENTS,
        vls=list(vls),
        current_vl=current_vl,
        shown_vl=current_vl,
        registers=registers,
        errors={},
    )


def lines(registers: dict[str, int], part: str = "all") -> list[str]:
    """Return the lines of 64-bit registers, after the headline."""
    return list(show_registers(read({n: text(v) for n, v in registers.items()}), part))[1:]


def squeezed(registers: dict[str, int], part: str = "all") -> str:
    """Join lines into one, with single spaces."""
    return re.sub(r"\s+", " ", " ".join(lines(registers, part))).strip()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PSTATE", 0x6040_03C5, "EL1h nZCv DAIF +PAN -UAO -TCO -DIT -SSBS BTYPE=--"),
        ("PSTATE", 0x8030_0C00, "EL0t Nzcv daif -PAN -UAO -TCO -DIT -SSBS BTYPE=j- SS IL"),
        ("SPSR_EL1", 0x2000_00D3, "Supervisor nzCv q A32 LE aIF -PAN -DIT -SSBS"),
        ("PSTATE", 0x3CF, "M=0xf nzcv DAIF -PAN -UAO -TCO -DIT -SSBS BTYPE=--"),
        ("ESR_EL1", 0x5600_0000, "SVC #0x0 (EC=SVC64 IL)"),
        (
            "ESR_EL1",
            0x9600_0045,
            "data abort, from the same exception level: write, level 1 translation fault "
            "(EC=DABT_CUR IL WnR DFSC=FAULT_L1)",
        ),
        (
            "ESR_EL1",
            1 << 32 | 0x0200_0005,
            "unknown reason, as for an undefined instruction (EC=UNKNOWN IL ISS=0x5 ISS2=0x1)",
        ),
        ("SCTLR_EL1", 0x30D0_1805, "LSMAOE nTLSMD SPAN EIS TSCXT I EOS C M"),
        ("CPACR_EL1", 0x30_0000, "SMEN=TRAP FPEN=NO_TRAP ZEN=TRAP"),
        ("ID_AA64PFR0_EL1", 0x1_0111_1112, "SVE GIC AdvSIMD=FP16 FP=FP16 EL3 EL2 EL1 EL0=AARCH32"),
        ("ID_AA64PFR0_EL1", 0x00FF_0011, "AdvSIMD=NI FP=NI EL1 EL0"),
        ("ID_AA64PFR0_EL1", 0x7_0000_0011, "SVE=0x7 AdvSIMD FP EL1 EL0"),
        (
            "CTR_EL0",
            0x8444_C004,
            "lines of 64 bytes for data, 64 for instructions; "
            "CWG=0x4 ERG=0x4 DminLine=0x4 L1Ip=PIPT IminLine=0x4",
        ),
        ("DCZID_EL0", 4, "DC ZVA zeroes 64 bytes; BS=0x4"),
        (
            "CCSIDR0",
            0x701F_E00A,
            "32 KiB: 256 sets, 2 ways, lines of 64 bytes; "
            "NumSets=0xff Associativity=1 LineSize=0x2",
        ),
        ("TPIDR_EL0", 7, ""),
    ],
)
def test_register_is_explained(name: str, value: int, words: str) -> None:
    assert explain(name, value) == words


def test_headline_says_which_vcpu_and_whether_it_is_on() -> None:
    vcpu = read({})
    vcpu["vcpu"], vcpu["mp_state"] = 3, "STOPPED"

    assert list(show_registers(vcpu)) == ["vCPU 3: STOPPED"]


def test_headline_shows_pending_exceptions() -> None:
    vcpu = read({})
    vcpu["events"] = PendingEvents(
        serror_pending=True, serror_has_esr=True, serror_esr="0x2", ext_dabt_pending=True
    )

    assert list(show_registers(vcpu)) == [
        "vCPU 0: RUNNABLE, SError with ESR 0x2 is pending, external data abort is pending"
    ]


def test_general_registers_are_four_in_a_row_after_pc_and_pstate() -> None:
    registers = {f"X{number}": number for number in range(31)}

    shown = lines(registers | {"SP_EL0": 1, "PC": 0x8000_0000, "PSTATE": 0x3C5, "SP_EL1": 2})

    assert shown[:5] == [
        "general registers",
        "  PC                0x0000000080000000",
        "  PSTATE            0x00000000000003c5  EL1h nzcv DAIF -PAN -UAO -TCO -DIT -SSBS BTYPE=--",
        "  SP_EL0            0x0000000000000001",
        "  SP_EL1            0x0000000000000002 (in use)",
    ]
    assert shown[5].split() == ["X0", text(0), "X1", text(1), "X2", text(2), "X3", text(3)]
    assert shown[-1].split() == ["X28", text(28), "X29", text(29), "X30", text(30)]


@pytest.mark.parametrize(
    ("pstate", "in_use"),
    [(0x3C4, "SP_EL0"), (0x3C5, "SP_EL1"), (0, "SP_EL0"), (0x3C9, "SP_EL2")],
)
def test_stack_pointer_in_use_is_marked(pstate: int, in_use: str) -> None:
    shown = lines({"PSTATE": pstate, "SP_EL0": 0, "SP_EL1": 0, "SP_EL2": 0})

    assert [line.split()[0] for line in shown if "(in use)" in line] == [in_use]


def test_exception_state_is_shown_when_zero() -> None:
    shown = lines({"AFSR0_EL1": 0, "VBAR_EL1": 0, "ESR_EL1": 0, "FAR_EL1": 0, "AFSR1_EL1": 0})

    assert [line.split()[0] for line in shown] == [
        "exceptions", "ESR_EL1", "FAR_EL1", "VBAR_EL1", "zero:"
    ]  # fmt: skip
    assert shown[-1] == "  zero: AFSR0-1_EL1"


def test_numbered_zero_registers_are_joined() -> None:
    zero = {f"DBG{kind}{number}_EL1": 0 for number in range(16) for kind in ("BVR", "WCR")}

    shown = lines(zero | {"DBGBVR7_EL1": 0x1000})

    assert shown == [
        "debug",
        "  DBGBVR7_EL1       0x0000000000001000",
        "  zero: DBGBVR0-6_EL1 DBGBVR8-15_EL1 DBGWCR0-15_EL1",
    ]


def test_numbered_registers_with_the_same_value_are_one_cell() -> None:
    shown = lines({f"PMEVCNTR{number}_EL0": 0xDE for number in range(31)} | {"PMSELR_EL0": 0x1E})

    assert shown == [
        "performance monitors",
        "  PMEVCNTR0-30_EL0  0x00000000000000de  PMSELR_EL0        0x000000000000001e",
    ]


def test_unwritten_register_is_marked() -> None:
    shown = lines({"TTBR0_EL1": NEVER_WRITTEN, "TPIDR_EL1": NEVER_WRITTEN, "TPIDR_EL0": 5})

    assert shown == [
        "system control",
        "  TTBR0_EL1         0x1de7ec7edbadc0de  never written",
        "  TPIDR_EL0         0x0000000000000005",
        "  never written: TPIDR_EL1",
    ]


def test_unallocated_id_registers_are_shown_only_when_not_zero() -> None:
    shown = squeezed({"S3_0_C0_C4_3": 0, "S3_0_C0_C5_7": 9, "ID_AA64AFR0_EL1": 0})

    assert shown == f"identification S3_0_C0_C5_7 {text(9)} zero: ID_AA64AFR0_EL1"


def test_errors_come_last() -> None:
    vcpu = read({"PSCI_VERSION": text(0x1_0001)})
    vcpu["errors"] = {"CCSIDR0": "ENOENT", "PC": "EIO"}

    assert list(show_registers(vcpu))[1:] == [
        "firmware",
        "  PSCI_VERSION      0x0000000000010001  MAJOR=1 MINOR=1",
        "could not be read",
        "  CCSIDR0 [ENOENT] PC [EIO]",
    ]


def test_vectors_have_their_most_significant_byte_first() -> None:
    z9 = bytes(range(32))[::-1].hex()
    registers = {
        "ZCR_EL1": text(1),
        "Z0": text(0, 256),
        "Z1": text(0, 256),
        "Z9": f"0x{z9}",
        "Z10": f"0x{'5a' * 32}",
        "P0": text(0xFF, 32),
        "P1": text(0, 32),
        "FFR": text(0, 32),
        "SVE_VLS": text(7, 512),
    }

    shown = list(show_registers(read(registers, (128, 256, 512), 256), "vectors"))[1:]

    assert shown == [
        "vectors: VL 256 of 128,256,512 bits; ZCR_EL1.LEN=1; the most significant byte first",
        "  P0   000000ff",
        "  Z9   1f1e1d1c1b1a1918 1716151413121110 0f0e0d0c0b0a0908 0706050403020100",
        "  Z10  5a5a5a5a5a5a5a5a in each of 4 doublewords",
        "  zero: FFR P1 Z0-1",
    ]


def test_vectors_beyond_the_guests_length_are_marked() -> None:
    vcpu = read({"Z0": text(1, 512)}, (128, 512), 128)
    vcpu["shown_vl"] = 512

    shown = list(show_registers(vcpu))[1:]

    assert shown == [
        "vectors: VL 128 of 128,512 bits, shown at 512; the most significant byte first",
        "  Z0   0000000000000000 0000000000000000 0000000000000000 0000000000000000",
        "       0000000000000000 0000000000000000 0000000000000000 0000000000000001",
    ]


def test_vectors_without_sve_are_v_registers() -> None:
    registers = {f"V{number}": text(0, 128) for number in range(32)} | {"V3": text(1 << 127, 128)}

    shown = list(show_registers(read(registers)))[1:]

    assert shown == [
        "vectors: 128 bits each, the most significant byte first",
        "  V3   8000000000000000 0000000000000000",
        "  zero: V0-2 V4-31",
    ]


# All of it

NAMES = [
    *sysregs.ENCODINGS,
    *(f"X{number}" for number in range(31)),
    *("PC", "PSTATE", "SP_EL0", "SP_EL1", "ELR_EL1", "SPSR_EL1", "SPSR_ABT", "FPCR", "FPSR"),
    *("V0", "Z0", "P0", "FFR", "TIMER_CTL", "TIMER_CVAL", "TIMER_CNT", "PTIMER_CTL", "CCSIDR0"),
    *("PSCI_VERSION", "SMCCC_ARCH_WORKAROUND_1", "STD_BMAP", "VENDOR_HYP_BMAP_2"),
    "S3_0_C15_C2_0",
]  # fmt: skip
EVERYTHING = {name: 0x0123_4567_89AB_0000 + number for number, name in enumerate(NAMES)}


def test_every_register_is_shown_exactly_once() -> None:
    shown = [line[2:] for line in lines(EVERYTHING) if line.startswith("  ")]

    names = re.findall(r"(?:^|  )(\w+) +(?:0x)?[0-9a-f]{16}\b", "\n".join(shown), re.MULTILINE)
    assert sorted(names) == sorted(EVERYTHING)


def test_lines_fit_a_terminal() -> None:
    assert max(len(line) for line in lines(EVERYTHING)) <= WIDTH


def test_parts_together_show_everything() -> None:
    by_part = [line for part in PARTS[1:] for line in lines(EVERYTHING, part)]

    assert PARTS == ("all", "core", "sys", "id", "vectors")
    assert by_part == lines(EVERYTHING)


@pytest.mark.parametrize(
    ("part", "titles"),
    [
        ("core", "general exceptions floating"),
        ("id", "identification caches"),
        ("vectors", "vectors:"),
        ("sys", "system timers GIC performance debug pointer firmware"),
    ],
)
def test_part_shows_only_its_sections(part: str, titles: str) -> None:
    shown = [line.split()[0] for line in lines(EVERYTHING, part) if not line.startswith(" ")]

    assert shown == titles.split()


def test_guest_in_aarch32_is_shown_by_its_names() -> None:
    values = {"PSTATE": 0xD3, "PC": 0x8000_8000, "X0": 1, "X19": 0x80, "ESR_EL1": 0x805,
              "SCTLR_EL1": 0x30C5_387D, "TPIDR_EL1": 9, "SP_EL1": 0x30, "CPACR_EL1": 0}  # fmt: skip
    vcpu = read({name: text(value) for name, value in values.items()})
    vcpu["names32"] = {name: other for name in values if (other := name32(name))}

    shown = re.sub(r"\s+", " ", " ".join(show_registers(vcpu)))

    assert "CPSR 0x00000000000000d3 Supervisor" in shown
    assert "PC 0x0000000080008000 CPSR" in shown
    assert "SP_EL1 0x0000000000000030" in shown
    assert "R0 0x0000000000000001 SP_svc 0x0000000000000080" in shown
    assert "DFSR 0x0000000000000805 SCTLR" not in shown  # each in its section
    assert "DFSR 0x0000000000000805" in shown
    assert "EC=" not in shown  # the fields of ESR_EL1 are not those of DFSR
    assert "SCTLR 0x0000000030c5387d CPACR" in shown
    assert "TPIDRPRW 0x0000000000000009" in shown
