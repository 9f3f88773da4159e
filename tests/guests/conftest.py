"""Fixtures: the guests, built from scratch; Linux's own tests; hosts of other kernels."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tests import selftests
from tests.runtime import own_runtime_dir

GUESTS = Path(__file__).resolve().parents[2] / "guests"


@pytest.fixture(scope="session")
def built(cross_gcc: Path, objects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that holds every guest as an ELF file and nothing else."""
    out = tmp_path_factory.mktemp("guests")
    make(GUESTS, cross_gcc, out, objects)
    return out


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the object files that `built` links."""
    return tmp_path_factory.mktemp("guests-build")


def make(sources: Path, gcc: Path, out: Path, build: Path) -> None:
    """Build the programs of that directory."""
    cc = os.path.relpath(gcc, sources)  # which may hold a space, and make splits at one
    command = ["make", "-C", str(sources), f"CC={cc}", f"OUT={out}", f"BUILD={build}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def fp(cross_gcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the kernel's own SVE tests, built."""
    directory = tmp_path_factory.mktemp("fp")
    selftests.build_programs(cross_gcc, directory)
    return directory


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest, pyvmm_cmd: list[str]) -> Iterator[list[str]]:
    """Return the options of an emulated host, which ends with its last test.

    The parameter is its kernel, or its kernel and its CPU.
    """
    kernel, *cpu = [request.param] if isinstance(request.param, str) else request.param
    where = ["--host-kernel", kernel, *(f"--host-cpu={model}" for model in cpu)]
    with own_runtime_dir("host"):
        subprocess.run([*pyvmm_cmd, "host", "start", *where], check=True)
        yield ["--host", "emulated", *where]


def loadable(elf: Any) -> list[Any]:
    """Return the segments to load, in the file's order, which is that of the addresses."""
    return [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]


def flat_image(path: Path) -> bytes:
    """Make a flat image from an ELF file, like ``objcopy -O binary``."""
    with path.open("rb") as file:
        segments = loadable(ELFFile(file))
        image = bytearray()
        for segment in segments:
            image += bytes(segment["p_paddr"] - segments[0]["p_paddr"] - len(image))
            image += segment.data()
    return bytes(image)
