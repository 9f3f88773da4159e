"""The machine code of the tiny guests equals their source."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.programs import PROGRAMS, source, words


@pytest.mark.parametrize("program", PROGRAMS)
def test_words_equal_the_assembled_source(program: str, cross_gcc: Path, tmp_path: Path) -> None:
    path, made = tmp_path / "guest.s", tmp_path / "guest.o"
    path.write_text(source(program))

    subprocess.run([cross_gcc, "-march=armv8.2-a+sve", "-c", "-o", made, path], check=True)

    with made.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        assert text.data() == words(program)
