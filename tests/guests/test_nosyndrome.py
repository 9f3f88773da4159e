"""Accesses to devices without syndrome, of a guest that `pyvmm run` runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = Path(__file__).with_name("nosyndrome.S")
LINK = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-Ttext=0x80080000"]


def build(gcc: Path, source: Path, where: Path) -> Path:
    """Link a guest."""
    guest = where / "guest.elf"
    subprocess.run([gcc, "-march=armv8.1-a", *LINK, "-o", guest, source], check=True)
    return guest


def test_accesses_without_a_syndrome_reach_uart_and_clock(
    pyvmm_cmd: list[str], cross_gcc: Path, tmp_path: Path
) -> None:
    guest = build(cross_gcc, SOURCE, tmp_path)

    done = subprocess.run([*pyvmm_cmd, "run", str(guest)], capture_output=True)

    assert done.stdout == b"without a syndrome\n", done.stderr
    assert done.returncode == 0x31, done.stderr


def test_instruction_that_is_not_emulated_ends_the_run_with_its_name(
    pyvmm_cmd: list[str], cross_gcc: Path, tmp_path: Path
) -> None:
    source = tmp_path / "guest.S"
    source.write_text(".globl _start\n_start: mov x0, #0x1000000\nldadd w1, w2, [x0]\n")
    guest = build(cross_gcc, source, tmp_path)

    done = subprocess.run([*pyvmm_cmd, "run", str(guest)], capture_output=True)

    assert done.returncode == 1
    assert b"at PC 0x80080004" in done.stderr
    assert b"`ldadd w1, w2, [x0]`" in done.stderr
