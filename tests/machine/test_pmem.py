"""Persistent memory on a real KVM: writable, and read-only."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.config import Config, DeviceConfig, Pmem, Rng
from pyvmm.errors import HostError, UsageError
from pyvmm.kvm import regs
from pyvmm.layout import GIB, MIB
from pyvmm.machine.machine import Machine
from tests import programs

pytestmark = pytest.mark.kvm

SIZE = 4 * MIB
WINDOW = 3 * GIB  # of the first device memory above 16 MiB of RAM
VBAR_EL1 = regs.sysreg(3, 0, 12, 0, 0)
CURRENT_EL_SPX = 0x200  # the vector of synchronous exceptions there.  Source: Arm DDI 0487, D1.3
ESR_EL1 = regs.sysreg(3, 0, 5, 2, 0)

Boot = Callable[..., Machine]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pmem"
    path.write_bytes(struct.pack("<I", 42) * (SIZE // 4))
    return path


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Make a machine that runs a program with these X1, X2 and X3, for at most 20 s."""
    with ExitStack() as stack:

        def make(program: str, *devices: DeviceConfig, **registers: int) -> Machine:
            config = Config(
                image=programs.write(program, tmp_path),
                vcpus=1,
                memory=16 * MIB,
                devices=devices,
                timeout_s=120.0,
            )
            machine = stack.enter_context(Machine(config, lambda data: None))
            for name, value in registers.items():
                machine.vcpus[0].set_one_reg(regs.X(int(name[1:])), value)
            return machine

        yield make


def vcpu_pc(machine: Machine) -> int:
    with machine.paused():
        return machine.vcpus[0].get_one_reg(regs.PC)


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("read_only", [False, True])
def test_guest_reads_the_file(boot: Boot, file: Path, read_only: bool) -> None:
    pmem = Pmem(path=file, read_only=read_only)

    machine = boot("load", Rng(), pmem, x2=layout.EXIT.base, x3=WINDOW + SIZE - 4)

    assert machine.run() == 42
    assert machine.devices()[1]["config"] == {"start": WINDOW, "size": SIZE}


def test_guest_writes_reach_the_file(boot: Boot, file: Path) -> None:
    machine = boot("store", Pmem(path=file), x1=0xABCD, x2=WINDOW + MIB)

    machine.start()

    assert wait_for(lambda: file.read_bytes()[MIB : MIB + 4] == struct.pack("<I", 0xABCD))


@pytest.mark.parametrize("program", ["store", "store a pair"])
def test_write_to_read_only_memory_aborts_and_leaves_the_file_unchanged(
    boot: Boot, file: Path, program: str
) -> None:
    before = file.read_bytes()
    machine = boot(program, Pmem(path=file, read_only=True), x1=7, x2=WINDOW + MIB)
    vcpu = machine.vcpus[0]
    vectors = layout.RAM_BASE + 8 * MIB
    machine.memory.write(vectors + CURRENT_EL_SPX, bytes.fromhex("00000014"))  # b .
    vcpu.set_one_reg(VBAR_EL1, vectors)

    machine.start()
    assert wait_for(lambda: "read-only memory write" in machine.counts.exits()[0] or
                    "ARM_NISV" in machine.counts.exits()[0])  # fmt: skip
    while vcpu_pc(machine) != vectors + CURRENT_EL_SPX:
        time.sleep(0.01)
    machine.pause()

    esr = vcpu.get_one_reg(ESR_EL1) & 0xFFFF_FFFF
    assert esr >> 26 == 0x25  # a data abort in EL1
    assert esr & 0x3F == 0x10  # synchronous, external
    machine.stop()
    machine.close()
    assert file.read_bytes() == before


def test_truncated_file_is_named_when_the_guest_accesses_it(boot: Boot, file: Path) -> None:
    machine = boot("load", Pmem(path=file), x2=layout.EXIT.base, x3=WINDOW + SIZE - 4)
    os.truncate(file, MIB)

    with pytest.raises(HostError) as caught:
        machine.run()

    assert str(file) in caught.value.message
    assert f"{SIZE - MIB} bytes shorter" in caught.value.message


def test_file_of_an_odd_size_is_refused(boot: Boot, file: Path) -> None:
    os.truncate(file, SIZE + 512)

    with pytest.raises(UsageError, match="is not a multiple of 2 MiB"):
        boot("spin", Pmem(path=file))
