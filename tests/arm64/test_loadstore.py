"""Loads and stores, decoded and described; binutils' disassembler is the judge."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from pyvmm.arm64.loadstore import GROUPS, OTHERS, Group, Index, decode, describe
from tests.conftest import tool

WORDS = 1000  # of each row
ALL = 0xFFFF_FFFF
# Described by pyvmm as unknown: it never faults
PREFETCH = re.compile("prfu?m ")


@pytest.fixture(scope="module")
def objdump() -> Path:
    return tool("aarch64-linux-gnu-objdump")


def disassemble(
    objdump: Path, words: list[int], where: Path, aliases: str = "no-aliases"
) -> list[str]:
    """Return binutils' text of each word; empty if it is undefined."""
    binary = where / "words"
    binary.write_bytes(b"".join(word.to_bytes(4, "little") for word in words))
    command = [str(objdump), "-D", "-z", "-b", "binary", "-m", "aarch64", "-M", aliases]
    done = subprocess.run([*command, str(binary)], check=True, capture_output=True, text=True)
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    texts = [" ".join(line[2:]).partition(";")[0].partition("//")[0].strip() for line in lines]
    return ["" if text.startswith((".inst", "udf")) else text for text in texts]


def rows(mask: int, value: int, seed: int) -> list[int]:
    """Return random words of a row."""
    rng = random.Random(seed)
    return [rng.getrandbits(32) & ~mask & ALL | value for _ in range(WORDS)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_decoded_instruction_reads_as_binutils_prints_it(
    group: Group, objdump: Path, tmp_path: Path
) -> None:
    words = rows(group.mask, group.value, group.value)

    texts = disassemble(objdump, words, tmp_path)

    assert len(texts) == WORDS
    for word, text in zip(words, texts, strict=True):
        if PREFETCH.match(text) or text.startswith("stgp"):
            text = ""
        operation = decode(word)
        if operation and operation.is_unpredictable and not text:  # binutils differs in ldpsw
            continue
        assert (str(operation) if operation else "") == text, f"{word:#010x}"
    assert sum(map(bool, texts)) > WORDS / 4


@pytest.mark.parametrize(
    ("mask", "value", "text"), [row for row in OTHERS if "{" in row[2]], ids=lambda row: str(row)
)
def test_other_instruction_is_described_as_binutils_prints_it(
    mask: int, value: int, text: str, objdump: Path, tmp_path: Path
) -> None:
    words = [word for word in rows(mask, value, value) if not decode(word)]
    # Fields that must be ones without a use: Rs, Rt2
    words += [word | 0x001F_7C00 for word in words] + [word | 0x0000_7C00 for word in words]
    words = [word for word in words if word & mask == value]

    texts = disassemble(
        objdump, words, tmp_path, aliases="aliases" if "dc" in text else "no-aliases"
    )

    assert sum(map(bool, texts)) > WORDS / 10
    for word, printed in zip(words, texts, strict=True):
        if printed:
            assert describe(word) == printed, f"{word:#010x}"


# A word of each kind that is only named, by an assembler
@pytest.mark.parametrize(
    ("word", "kind"),
    [
        (0xE580_4120, "an SVE load or store"),  # str z0, [x9]
        (0xA540_A000, "an SVE load or store"),  # ld1w {z0.s}, p0/z, [x0]
        (0x4C40_7800, "a SIMD load or store of structures"),  # ld1 {v0.4s}, [x0]
        (0x0D00_8000, "a SIMD load or store of structures"),  # st1 {v0.s}[0], [x0]
        (0x9900_4020, "a load-acquire or store-release with an offset"),  # stlur w0, [x1, #4]
        (0x1901_0440, "a memory copy or set"),  # cpyfp [x0]!, [x1]!, x2!
        (0x1D01_0440, "a memory copy or set"),  # cpyp [x0]!, [x1]!, x2!
        (0xD920_0800, "a load or store of memory tags"),  # stg x0, [x0]
        (0x6900_0400, "a store of a pair with memory tags"),  # stgp x0, x1, [x0]
        (0xF820_0400, "a load with pointer authentication"),  # ldraa x0, [x0]
        (0x1800_0040, "a load from an address relative to PC"),  # ldr w0, .+8
        (0xD50B_7B20, "cache maintenance or address translation"),  # dc cvau, x0
        (0xD503_201F, "the instruction"),  # nop
    ],
)
def test_describe_names_the_kind_of_other_instructions(word: int, kind: str) -> None:
    assert describe(word).startswith(kind)
    assert f"{word:#010x}" in describe(word)
    assert decode(word) is None


@pytest.mark.parametrize(
    ("word", "base", "offset", "address", "after"),
    [
        (0xB8004401, 0x1000, 0, 0x1000, 0x1004),  # str w1, [x0], #4
        (0xB81FCC01, 0x1000, 0, 0xFFC, 0xFFC),  # str w1, [x0, #-4]!
        (0xB81FC001, 0x1000, 0, 0xFFC, 0x1000),  # stur w1, [x0, #-4]
        (0xF9400401, 0x1000, 0, 0x1008, 0x1000),  # ldr x1, [x0, #8]
        (0xA9BF0401, 0x1000, 0, 0xFF0, 0xFF0),  # stp x1, x1, [x0, #-16]!
        (0xB8627801, 0x1000, 3, 0x100C, 0x1000),  # ldr w1, [x0, x2, lsl #2]
        (0xB8625801, 0x1000, 0xF_0000_0001, 0x1004, 0x1000),  # ldr w1, [x0, w2, uxtw #2]
        (0xB862D801, 0x1000, 0xFFFF_FFFF, 0xFFC, 0x1000),  # ldr w1, [x0, w2, sxtw #2]
        (0xB862E801, 0x1000, 2**64 - 1, 0xFFF, 0x1000),  # ldr w1, [x0, x2, sxtx]
        (0xB8004401, 2**64 - 4, 0, 2**64 - 4, 0),  # str w1, [x0], #4
    ],
)
def test_address_and_write_back_follow_the_index(
    word: int, base: int, offset: int, address: int, after: int
) -> None:
    operation = decode(word)

    assert operation is not None
    assert operation.address(base, offset) == (address, after)


@pytest.mark.parametrize(
    ("word", "loaded", "value"),
    [
        (0x39C00000, 0x80, 0xFFFF_FF80),  # ldrsb w0, [x0]
        (0x39800000, 0x80, 0xFFFF_FFFF_FFFF_FF80),  # ldrsb x0, [x0]
        (0x79C00000, 0x7FFF, 0x7FFF),  # ldrsh w0, [x0]
        (0x79C00000, 0x8000, 0xFFFF_8000),  # the same
        (0x79800000, 0x8000, 0xFFFF_FFFF_FFFF_8000),  # ldrsh x0, [x0]
        (0xB9800000, 0x8000_0000, 0xFFFF_FFFF_8000_0000),  # ldrsw x0, [x0]
        (0x69400400, 0x8000_0000, 0xFFFF_FFFF_8000_0000),  # ldpsw x0, x1, [x0]
        (0xB9400000, 0x8000_0000, 0x8000_0000),  # ldr w0, [x0]
        (0x3DC00000, 1 << 127, 1 << 127),  # ldr q0, [x0]
    ],
)
def test_loaded_value_is_extended_as_the_mnemonic_says(word: int, loaded: int, value: int) -> None:
    operation = decode(word)

    assert operation is not None
    assert operation.extend(loaded) == value


@pytest.mark.parametrize(
    ("word", "unpredictable"),
    [
        (0xA9400000, True),  # ldp x0, x0, [x0]
        (0xA9000000, False),  # stp x0, x0, [x0]
        (0xF8408400, True),  # ldr x0, [x0], #8
        (0xF8008400, True),  # str x0, [x0], #8
        (0xF80087FF, False),  # str xzr, [sp], #8
        (0x3CC08400, False),  # ldr q0, [x0], #8
        (0xAD400000, True),  # ldp q0, q0, [x0]
        (0xF9400000, False),  # ldr x0, [x0]
    ],
)
def test_writing_a_register_twice_is_unpredictable(word: int, unpredictable: bool) -> None:
    operation = decode(word)

    assert operation is not None
    assert operation.is_unpredictable == unpredictable


def test_encoding_groups_do_not_overlap() -> None:
    rng = random.Random(1)
    for word in (rng.getrandbits(32) for _ in range(100_000)):
        assert sum(word & group.mask == group.value for group in GROUPS) < 2
    assert {group.index for group in GROUPS} == set(Index)
