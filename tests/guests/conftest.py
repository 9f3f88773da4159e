"""The guests, built from scratch."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

GUESTS = Path(__file__).resolve().parents[2] / "guests"


@pytest.fixture(scope="session")
def built(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every guest as an ELF file and nothing else."""
    out = tmp_path_factory.mktemp("guests")
    build = tmp_path_factory.mktemp("guests-build")
    command = ["make", "-C", str(GUESTS), f"CC={cross_gcc}", f"OUT={out}", f"BUILD={build}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def loadable(elf: Any) -> list[Any]:
    """The segments that are loaded, in the file's order, which is that of the addresses."""
    return [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]


def flat_image(path: Path) -> bytes:
    """What ``objcopy -O binary`` makes of an ELF file."""
    with path.open("rb") as file:
        segments = loadable(ELFFile(file))
        image = bytearray()
        for segment in segments:
            image += bytes(segment["p_paddr"] - segments[0]["p_paddr"] - len(image))
            image += segment.data()
    return bytes(image)
