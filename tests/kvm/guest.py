"""Small guests for the tests of KVM, and the smallest machine that runs one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import pytest

from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import VcpuFeature, VgicGroup
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vgic import Vgic, affinity
from pyvmm.kvm.vm import Vm
from pyvmm.memory.ram import GuestMemory

RAM_BASE = 0x8000_0000
RAM_SIZE = 0x20_0000
PAGE_SIZE = 0x1000
MMIO = 0x100_0000  # unmapped: an access exits
DISTRIBUTOR = 0x3FFF_0000
REDISTRIBUTORS = 0x3F00_0000
EXITS_AT = 20  # the register that holds MMIO for take_interrupts and call

# Each line is an instruction's word and its source; test_guest.py assembles the source to compare.
PROGRAMS = {
    "spin": """
        14000000  b .
    """,
    "wait": """
        d503207f  wfi
        14000000  b .
    """,
    "count": """
        91000400  add x0, x0, #1
        17ffffff  b .-4
    """,
    "five_adds": """
        91000400  add x0, x0, #1
        91000400  add x0, x0, #1
        91000400  add x0, x0, #1
        91000400  add x0, x0, #1
        91000400  add x0, x0, #1
        14000000  b .
    """,
    "break": """
        91000400  add x0, x0, #1
        d42000e0  brk #7
        14000000  b .
    """,
    "store_then_load": """
        b9000001  str w1, [x0]
        b9400402  ldr w2, [x0, #4]
        39402003  ldrb w3, [x0, #8]
        f9400804  ldr x4, [x0, #16]
        79003004  strh w4, [x0, #24]
        14000000  b .
    """,
    "bytes_then_load": """
        39000001  strb w1, [x0]
        39000402  strb w2, [x0, #1]
        f9000403  str x3, [x0, #8]
        b94000a4  ldr w4, [x5]
        14000000  b .
    """,
    "store_twice_then_load": """
        b9000001  str w1, [x0]
        b9000041  str w1, [x2]
        b94000a4  ldr w4, [x5]
        17fffffd  b .-12
    """,
    "call": """
        d4000002  hvc #0
        f9000280  str x0, [x20]
        14000000  b .
    """,
    "take_interrupts": """
        d538cc00  mrs x0, S3_0_C12_C12_0
        d10ffc01  sub x1, x0, #1023
        b4ffffc1  cbz x1, .-8
        d518cc20  msr S3_0_C12_C12_1, x0
        b9000280  str w0, [x20]
        17fffffb  b .-20
    """,
    # X0 points at steps of four bytes: an operation, an offset from X2, 0, and a byte to store.
    # Operations: loads of 1, 2, 4 and 8 bytes to X1; stores of 1 and 4; a store to X9, the mark.
    "script": """
        b8404403  ldr w3, [x0], #4
        53083c64  ubfx w4, w3, #8, #8
        8b040045  add x5, x2, x4
        53187c67  lsr w7, w3, #24
        92401c63  and x3, x3, #0xff
        10000068  adr x8, .+12
        8b030d08  add x8, x8, x3, lsl #3
        d61f0100  br x8
        394000aa  ldrb w10, [x5]
        1400000d  b .+52
        794000aa  ldrh w10, [x5]
        1400000b  b .+44
        b94000aa  ldr w10, [x5]
        14000009  b .+36
        f94000aa  ldr x10, [x5]
        14000007  b .+28
        390000a7  strb w7, [x5]
        17ffffef  b .-68
        b90000a7  str w7, [x5]
        17ffffed  b .-76
        b9000127  str w7, [x9]
        17ffffeb  b .-84
        f800842a  str x10, [x1], #8
        17ffffe9  b .-92
    """,
    # Translates the addresses from X0 up to X2, and writes each PAR_EL1 from X1 on
    "translate": """
        d508871f  tlbi vmalle1
        d5033f9f  dsb sy
        d5033fdf  isb
        f8408403  ldr x3, [x0], #8
        d5087803  at s1e1r, x3
        d5033fdf  isb
        d5387404  mrs x4, par_el1
        f8008424  str x4, [x1], #8
        eb02001f  cmp x0, x2
        54ffff41  b.ne .-24
        f9000284  str x4, [x20]
        14000000  b .
    """,
    "undecodable": """
        a9000001  stp x1, x0, [x0]
        14000000  b .
    """,
}


def code(program: str) -> bytes:
    """Return a program's machine code."""
    lines = PROGRAMS[program].strip().splitlines()
    return b"".join(int(line.split()[0], 16).to_bytes(4, "little") for line in lines)


def write_code(memory: GuestMemory, data: bytes) -> None:
    """Put code at the start of RAM through the kernel.

    Not by memcpy, which uses SVE stores in a host with SVE: QEMU 7.2 forgets what it translated
    from the first byte of each such store only (notdirty_write() in accel/tcg/cputlb.c), and runs
    an earlier guest's code where the host gives this one the same page.
    """
    reader, writer = os.pipe()
    os.write(writer, data)
    with memory.view(RAM_BASE, len(data)) as view:
        os.readv(reader, [view])
    os.close(reader)
    os.close(writer)


class Gic(Vgic):
    """A GICv3 with methods for its registers; ``mpidr`` is the vCPU's MPIDR_EL1."""

    def get_dist_reg(self, offset: int) -> int:
        """Read 32 bits of the distributor."""
        return self.device.get_attr(VgicGroup.DIST_REGS, offset)

    def set_dist_reg(self, offset: int, value: int) -> None:
        """Write 32 bits of the distributor, with user space's semantics, not a guest's."""
        self.device.set_attr(VgicGroup.DIST_REGS, offset, value)

    def get_redist_reg(self, mpidr: int, offset: int) -> int:
        """Read 32 bits of a vCPU's redistributor."""
        return self.device.get_attr(VgicGroup.REDIST_REGS, affinity(mpidr) | offset)

    def set_redist_reg(self, mpidr: int, offset: int, value: int) -> None:
        """Write 32 bits of a vCPU's redistributor."""
        self.device.set_attr(VgicGroup.REDIST_REGS, affinity(mpidr) | offset, value)

    def set_cpu_sysreg(self, mpidr: int, encoding: int, value: int) -> None:
        """Write an ICC_*_EL1 register of a vCPU."""
        self.device.set_attr(VgicGroup.CPU_SYSREGS, affinity(mpidr) | encoding, value)

    def get_line_level(self, mpidr: int, intid: int) -> int:
        """Return the input lines of 32 interrupts from ``intid``, a multiple of 32."""
        return self.device.get_attr(VgicGroup.LEVEL_INFO, affinity(mpidr) | intid)

    def set_line_level(self, mpidr: int, intid: int, lines: int) -> None:
        """Set the input lines of 32 interrupts."""
        self.device.set_attr(VgicGroup.LEVEL_INFO, affinity(mpidr) | intid, lines)


@dataclass
class Guest:
    """A VM with RAM at RAM_BASE, and vCPUs at the start of a program."""

    system: System
    vm: Vm
    memory: GuestMemory
    vcpus: list[Vcpu] = field(default_factory=list)
    gic: Gic | None = None

    @property
    def vcpu(self) -> Vcpu:
        """The first vCPU."""
        return self.vcpus[0]

    def set(self, **values: int) -> None:
        """Set general registers of the first vCPU: set(x0=1)."""
        for name, value in values.items():
            self.vcpu.set_one_reg(regs.lookup(name.upper()), value)

    def x(self, number: int) -> int:
        """Return a general register of the first vCPU."""
        return self.vcpu.get_one_reg(regs.X(number))

    @property
    def pc(self) -> int:
        """The first vCPU's PC, as an offset in the program."""
        return self.vcpu.get_one_reg(regs.PC) - RAM_BASE


@contextlib.contextmanager
def guest(
    program: str | bytes,
    *,
    kind: type[Vcpu] = Vcpu,
    features: Collection[int] = (VcpuFeature.PSCI_0_2,),
    vcpus: int = 1,
    gic: bool = False,
    memory_flags: int = 0,
) -> Iterator[Guest]:
    """Run the body with a guest, of a program or machine code.

    vCPUs beyond the first are off until PSCI CPU_ON.

    Skips the test where the guest is to have SVE and the host has none.
    """
    with contextlib.ExitStack() as stack:
        system = stack.enter_context(System.open())
        if VcpuFeature.SVE in features and not system.has(Cap.ARM_SVE):
            pytest.skip("this host has no SVE")
        vm = stack.enter_context(system.create_vm())
        memory = stack.enter_context(GuestMemory(RAM_BASE, RAM_SIZE))
        write_code(memory, program if isinstance(program, bytes) else code(program))
        vm.set_user_memory_region(0, RAM_BASE, RAM_SIZE, memory.host_address, memory_flags)
        made = Guest(system, vm, memory)
        for number in range(vcpus):
            vcpu = stack.enter_context(vm.create_vcpu(number, kind))
            off = (VcpuFeature.POWER_OFF,) if number else ()
            vcpu.init(vm.preferred_target(), (*features, *off))
            made.vcpus.append(vcpu)
        made.vcpu.set_one_reg(regs.PC, RAM_BASE)
        if gic:
            made.gic = Gic.create(
                vm, distributor=DISTRIBUTOR, redistributors=REDISTRIBUTORS, nr_irqs=64
            )
            stack.enter_context(contextlib.closing(made.gic))
        yield made


@contextlib.contextmanager
def running(vcpu: Vcpu) -> Iterator[Callable[[], Exit]]:
    """Run a vCPU in a thread of its own; what is yielded joins it and gives the exit."""
    exits: list[Exit] = []
    thread = threading.Thread(target=lambda: exits.append(vcpu.run()))
    thread.start()

    def join() -> Exit:
        thread.join(120)
        assert not thread.is_alive(), "the vCPU did not return"
        return exits[0]

    try:
        yield join
    finally:
        while thread.is_alive():
            vcpu.kick()
            thread.join(0.05)
