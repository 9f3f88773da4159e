"""Guests at EL2: the bundled guests, and their snapshots, with VHE and without it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import FIRST_S, Pyvmm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.matrix,  # another kernel and another QEMU: 150 MB
    pytest.mark.timeout(FIRST_S),
]

AT_EL2 = pytest.mark.parametrize(
    "el2", [("--nested",), ("--nested", "--e2h0")], ids=["VHE", "no VHE"]
)


class Case(NamedTuple):
    """The arguments of `pyvmm run`, the end of a guest's output, and what is typed."""

    arguments: str
    end: str
    typed: str = ""
    code: int = 0


CASES = [
    Case("hello", "Hello from EL2 on vCPU 0, MPIDR_EL1=0x80000000\n"),
    Case("exit -p exit=7", "", code=7),
    Case("echo", "echo: 4 bytes, 1 lines, 1 interrupts\n", typed="abc\nquit\n"),
    Case("smp -c 3", "vCPU 2: off and up again\n3 vCPUs\n"),
    Case("timer", " counts at 1000000000 Hz\n"),
    Case("sve-vls -c 2 --sve-vls 128,256", "SVE vector lengths: 128 256\n"),
    Case("sve-zcr -c 2", "5 lengths: all registers held\n"),
    Case("sve-math -p kernel=strlen", " ticks per element\n"),
    Case("sve-snapshot -c 3 -p rounds=20", "failures=0\n"),
    Case("virtio-console --console virtio", "echo: 4 bytes, 2 interrupts\n", typed="abc\n\x04"),
    Case("zcr-el12", "checked 0 vl 16 zcr 0\n", typed="Afcq"),
]


@AT_EL2
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.arguments.split()[0])
def test_bundled_guest_works_at_el2(
    case: Case, el2: tuple[str, ...], nested: tuple[str, ...], pyvmm: Pyvmm
) -> None:
    done = pyvmm("run", *nested, *el2, *case.arguments.split(), input=case.typed)

    assert (done.returncode, done.stderr) == (case.code, "")
    assert done.stdout.endswith(case.end), done.stdout


@AT_EL2
def test_guest_at_el2_continues_from_its_snapshot(
    el2: tuple[str, ...], nested: tuple[str, ...], pyvmm: Pyvmm, tmp_path: Path
) -> None:
    saved = tmp_path / "guest.snap"
    guest = ("sve-snapshot", "-c", "3", "-m", "16", "-p", "patience=60")

    begun = pyvmm("run", *nested, *el2, *guest, "--timeout", "8", "--save-on-exit", str(saved))
    restored = pyvmm("restore", *nested, str(saved), input="csq")

    assert (begun.returncode, begun.stdout) == (124, "at work\n"), begun.stderr
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert "failures=0" in restored.stdout
