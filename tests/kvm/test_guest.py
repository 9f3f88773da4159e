from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.kvm.guest import PROGRAMS, code


@pytest.mark.parametrize("program", PROGRAMS)
def test_words_match_the_assemblers_output(program: str, cross_gcc: Path, tmp_path: Path) -> None:
    lines = [line.split(maxsplit=1)[1] for line in PROGRAMS[program].strip().splitlines()]
    source = tmp_path / "guest.s"
    source.write_text("\n".join(lines) + "\n")

    subprocess.run([str(cross_gcc), "-c", "-o", str(tmp_path / "guest.o"), str(source)], check=True)

    with (tmp_path / "guest.o").open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        assert text.data() == code(program)
