"""The tables of the conformance run: complete, with a source for each promise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.arm64.vl import LENGTHS
from pyvmm.kvm.sve import bitmap, lengths
from pyvmm.svecheck import ids, promises, registers, reglist
from pyvmm.svecheck.bench import SveHost
from pyvmm.svecheck.case import Case, Promise
from pyvmm.svecheck.programs import PROGRAMS, code
from pyvmm.svecheck.runner import CASES, SUBJECTS, chosen
from pyvmm.svecheck.states import ROWS, STATES

TARGET = SveHost(frozenset({128, 256}), frozenset({128, 256}))


def test_case_names_are_unique_and_begin_with_the_subject() -> None:
    names = [case.name for case in CASES]
    subjects = {subject.__name__.rpartition(".")[2] for subject in SUBJECTS}

    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} == subjects
    assert not [name for name in names if " " in name or "_" in name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_has_an_action_and_an_expectation(case: Case) -> None:
    assert case.done
    assert not case.done.endswith(".")
    assert case.expects(TARGET)
    assert case.expects(TARGET) not in {known.outcome for known in case.known}


def test_every_promise_has_a_case() -> None:
    made = {value for value in vars(promises).values() if isinstance(value, Promise)}

    assert {case.promise for case in CASES} == made


def test_every_ioctl_is_tried_in_every_state_that_has_an_expectation() -> None:
    expected = sum(cell is not None for row in ROWS for cell in row.cells)

    assert all(len(row.cells) == len(STATES) for row in ROWS)
    assert sum(case.name.startswith(f"states/{row.name}-") for row in ROWS for case in CASES
               if case.name.rpartition(f"states/{row.name}-")[2] in STATES) == expected  # fmt: skip


def test_surplus_slices_are_all_but_slice_0_of_every_register() -> None:
    assert len(ids.Z_P_FFR) == 49
    assert len(ids.SURPLUS) == 49 * 31
    assert not set(ids.SURPLUS.values()) & set(ids.Z_P_FFR.values())
    assert len(registers.FEW) == 10
    assert len(reglist.SVE_REGISTERS) == 50


def test_bitmap_and_lengths_are_inverse() -> None:
    assert bitmap({128, 256, 512}) == 0b1011
    assert lengths(bitmap(LENGTHS)) == LENGTHS
    assert lengths(0) == frozenset()
    assert lengths(1 << 511) == {65536}


def test_pattern_selects_cases_by_name() -> None:
    assert {case.name.partition("/")[0] for case in chosen("guest/")} == {"guest"}
    assert [case.name for case in chosen("sets/*short")] == ["sets/every-set-of-short-lengths"]
    assert chosen(None) == list(CASES)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_words_equal_those_of_an_assembler(
    program: str, cross_gcc: Path, tmp_path: Path
) -> None:
    lines = [line.split(maxsplit=1)[1] for line in PROGRAMS[program].strip().splitlines()]
    source = tmp_path / "guest.s"
    source.write_text("\n".join(lines) + "\n")

    subprocess.run(
        [cross_gcc, "-march=armv8-a+sve", "-c", "-o", tmp_path / "guest.o", source], check=True
    )

    with (tmp_path / "guest.o").open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        assert text.data() == code(program)
