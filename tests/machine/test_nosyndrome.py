"""Accesses without syndrome: the same device accesses and registers as by plain instructions."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.arm64.control import Sctlr, Tcr
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.arm64.sysregs import ENCODINGS
from pyvmm.devices.bus import Bus
from pyvmm.devices.device import Device
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.errors import GuestError
from pyvmm.kvm import regs
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.uapi import ExitReason, VcpuFeature
from pyvmm.layout import Region
from pyvmm.machine.exits import ExitHandler
from pyvmm.machine.nosyndrome import NotEmulated, emulate
from pyvmm.machine.plan import Feature
from pyvmm.machine.vcpus import MachineVcpu
from tests import programs
from tests.kvm.guest import RAM_BASE, RAM_SIZE, Guest, guest
from tests.machine.accesses import FORMS

BLOCKS = [block.strip() for block in FORMS.split("\n\n")]
NAMES = [programs.source_of(block).partition("\n")[0] for block in BLOCKS]

DEVICE = Region("device", 0x100_0000, 0x1000)
DONE = Region("done", 0x200_0000, 0x1000)
MIDDLE = DEVICE.base + 0x100  # of the accesses
UPPER = -1 << 39 & 2**64 - 1
STEP = 64  # bytes of code for each program
END = programs.code_of("f900015f  str xzr, [x10]\n14000000  b .")
# A branch was just taken: the first instruction clears PSTATE.BTYPE
EL1 = Pstate.of(D=1, A=1, I=1, F=1, BTYPE=1, M=Mode.EL1h)
EL0 = EL1.replace(M=Mode.EL0t)
SCTLR = Sctlr(0x30D0_0980)  # the bits that are always one
SCRATCH = (regs.X(16), regs.X(17), regs.PC)


def test_words_equal_the_assembled_source(cross_gcc: Path, tmp_path: Path) -> None:
    path, made = tmp_path / "forms.s", tmp_path / "forms.o"
    path.write_text(programs.source_of(FORMS.replace("\n\n", "\n")))

    subprocess.run([cross_gcc, "-march=armv8.2-a", "-c", "-o", made, path], check=True)

    with made.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        assert text.data() == programs.code_of(FORMS.replace("\n\n", "\n"))


@dataclass
class Recorder:
    """A device that records accesses; what it returns depends on the address."""

    log: list[tuple[int, int, int | None]] = field(default_factory=list)

    def mmio_read(self, offset: int, length: int) -> int:
        self.log.append((offset, length, None))
        data = bytes((37 * at + 0x81) & 0xFF for at in range(offset, offset + length))
        return int.from_bytes(data, "little")

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        self.log.append((offset, length, value))


class Watched(Recorder):
    """A device of pyvmm, new for each program; the log has the values that it returns."""

    def __init__(self, make: Callable[[], Device]) -> None:
        super().__init__()
        self.make = make
        self.inner = make()

    def mmio_read(self, offset: int, length: int) -> int:
        value = self.inner.mmio_read(offset, length)
        self.log.append((offset, length, value))
        return value

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        self.log.append((offset, length, value))
        self.inner.mmio_write(offset, length, value)


class Lab:
    """A guest with every form's programs, a recording device, and pyvmm's handler of exits."""

    def __init__(self, made: Guest, sve: bool, device: Recorder | None) -> None:
        self.made = made
        self.device, self.done = device or Recorder(), Recorder()
        self.results: list[Any] = []
        bus = Bus()
        bus.add(DEVICE, self.device)
        bus.add(DONE, self.done)
        self.plan = SimpleNamespace(features=frozenset[Feature](), vls={128} if sve else set())
        parts = {"bus": bus, "virtio": [], "plan": self.plan, "addressable": made.memory}
        self.board = cast("Any", SimpleNamespace(vcpus=made.vcpus, **parts))
        self.handler = ExitHandler(
            self.board, None, None, end=self.results.append, has_ended=lambda: bool(self.results)
        )
        self.simd = regs.Z if sve else regs.V

    def run(self, at: int, **registers: int) -> tuple[list[Any], dict[int, int]]:
        """Run the program at that place; return the device's log, and the registers."""
        vcpu = self.made.vcpu
        for number in range(31):
            vcpu.set_one_reg(regs.X(number), 0x1111_2222_3333_4400 + number)
        for number in range(32):
            size = regs.size(self.simd(number))
            data = bytes(0x80 | number + 5 * at & 0x7F for at in range(size))
            vcpu.set_one_reg(self.simd(number), int.from_bytes(data, "little"))
        usual = {
            "PSTATE": EL1, "SCTLR_EL1": SCTLR,
            "SP_EL1": MIDDLE, "SP_EL0": MIDDLE, "X0": MIDDLE, "X3": 16, "X4": 0xFFFF_FFFF,
            "X5": 2**64 - 3, "X10": DONE.base, "PC": RAM_BASE + at,
        }  # fmt: skip
        for name, value in (usual | registers).items():
            vcpu.set_one_reg(regs.lookup(name, ENCODINGS), value)
        self.device.log.clear()
        self.done.log.clear()
        while not self.done.log and not self.results:
            self.handler.step(vcpu)
        vcpu.kick()  # completes the last access: KVM moves PC at the next run
        vcpu.run()
        kept = {regs.CORE, regs.SVE}
        values = {
            reg_id: vcpu.get_one_reg(reg_id)
            for reg_id in vcpu.get_reg_list()
            if regs.group(reg_id) in kept and reg_id not in SCRATCH
        }
        return list(self.device.log), values


@contextmanager
def lab(*code: str, sve: bool = False, device: Recorder | None = None) -> Iterator[Lab]:
    """Make a lab with these programs, each at a multiple of STEP."""
    padded = [(programs.code_of(program) + END).ljust(STEP, b"\0") for program in code]
    features = {VcpuFeature.PSCI_0_2} | ({VcpuFeature.SVE} if sve else set())
    with guest(b"".join(padded), kind=MachineVcpu, features=features) as made:
        made.vm.enable_cap(Cap.ARM_NISV_TO_USER)
        if sve:
            made.vcpu.finalize(VcpuFeature.SVE)
        made.vcpu.set_one_reg(regs.lookup("CPACR_EL1", ENCODINGS), 0x33 << 16)
        yield Lab(made, sve, device)


def halves() -> list[str]:
    """Return all forms, then all plain equivalents."""
    parts = [block.partition("\n") for block in BLOCKS]
    return [form for form, _, _ in parts] + [plain for _, _, plain in parts]


def map_memory(made: Guest, pages: tuple[int, ...] = ()) -> dict[str, int]:
    """Map the lower 4 GiB at UPPER and at 0, the devices as Normal memory; return the registers.

    With ``pages`` the device's page and the next have descriptors with these bits.
    """
    first, second, third = (RAM_BASE + 0x10_0000 + 0x1000 * n for n in range(3))
    entries = {first + 8 * gib: 0x401 | gib << 30 for gib in range(4)}
    if pages:
        entries |= {second + 8 * (DONE.base >> 21): DONE.base | 0x401}
        entries |= {first: second | 3, second + 8 * (DEVICE.base >> 21): third | 3}
        entries |= {third + 8 * n: DEVICE.base + 0x1000 * n | bits for n, bits in enumerate(pages)}
    for address, entry in entries.items():
        made.memory.write(address, entry.to_bytes(8, "little"))
    return {
        "TCR_EL1": Tcr.of(T0SZ=25, T1SZ=25, TG1=2, IPS=1, TBI0=1),
        "TTBR0_EL1": first,
        "TTBR1_EL1": first,
        "MAIR_EL1": 0xFF,
        "SCTLR_EL1": SCTLR.replace(M=1),
    }


@pytest.mark.kvm
@pytest.mark.parametrize("sve", [False, True])
def test_access_without_syndrome_does_what_plain_instructions_do(sve: bool) -> None:
    with lab(*halves(), sve=sve) as made:
        for number, name in enumerate(NAMES):
            form = made.run(number * STEP)
            plain = made.run((len(NAMES) + number) * STEP)

            assert not made.results, name
            assert form == plain, name
            assert form[0], name
    assert made.handler.counts[0].others[ExitReason.ARM_NISV] > len(NAMES) / 2


def clock() -> Device:
    return Pl031(lambda level: None, clock=lambda: 0x8765_4321)


def uart() -> Device:
    made = Uart8250(lambda level: None, lambda data: None)
    made.receive(bytes(range(0x80, 0x90)))
    return made


@pytest.mark.kvm
@pytest.mark.parametrize(("make", "offset"), [(clock, 0x10), (clock, 0xFE0), (uart, 0)])
def test_device_of_a_guest_sees_what_plain_instructions_do(
    make: Callable[[], Device], offset: int
) -> None:
    device = Watched(make)
    seen = set()
    with lab(*halves(), device=device) as made:
        at = dict.fromkeys(("X0", "SP_EL1"), DEVICE.base + offset)
        for number, name in enumerate(NAMES):
            results = []
            for program in (number, len(NAMES) + number):
                device.inner = make()
                results.append((*made.run(program * STEP, **at), device.inner.state()))

            assert not made.results, name
            assert results[0] == results[1], name
            log, _, state = results[0]
            seen.add(f"{log} {state}")
    assert len(seen) > len(NAMES) / 4


@pytest.mark.kvm
@pytest.mark.parametrize(
    "state",
    [
        {"SCTLR_EL1": SCTLR.replace(EE=1)},
        {"SCTLR_EL1": SCTLR.replace(E0E=1), "PSTATE": EL0},
        {"SCTLR_EL1": SCTLR.replace(E0E=1)},
        {"SCTLR_EL1": SCTLR.replace(EE=1), "PSTATE": EL0},
        {"PSTATE": EL1.replace(M=Mode.EL1t), "SP_EL0": MIDDLE + 64},
    ],
    ids=lambda state: " ".join(f"{name}={value:#x}" for name, value in state.items()),
)
def test_access_uses_the_exception_levels_byte_order_and_stack_pointer(
    state: dict[str, int],
) -> None:
    with lab(*halves()) as made:
        for number, name in enumerate(NAMES):
            if " q" in name:  # two plain accesses would swap the halves of a big-endian quadword
                continue
            form = made.run(number * STEP, **state)
            plain = made.run((len(NAMES) + number) * STEP, **state)

            assert not made.results, name
            assert form == plain, name


@pytest.mark.kvm
def test_big_endian_quadword_begins_with_its_highest_byte() -> None:
    with lab("3d800001  str q1, [x0]", "3dc00001  ldr q1, [x0]") as made:
        big = {"SCTLR_EL1": SCTLR.replace(EE=1)}

        log, values = made.run(0, **big)
        data = values[regs.V(1)].to_bytes(16, "big")
        _, loaded = made.run(STEP, **big)

    assert log == [
        (0x100, 8, int.from_bytes(data[:8], "little")),
        (0x108, 8, int.from_bytes(data[8:], "little")),
    ]
    read = b"".join(Recorder().mmio_read(at, 1).to_bytes(1, "big") for at in range(0x100, 0x110))
    assert loaded[regs.V(1)] == int.from_bytes(read, "big")


@pytest.mark.kvm
@pytest.mark.parametrize("at", [MIDDLE + 3, MIDDLE | 0xAB << 56, MIDDLE | UPPER])
def test_access_goes_to_the_address_that_the_guests_tables_give(at: int) -> None:
    with lab(*halves()) as made:
        mapped = map_memory(made.made)
        for number, name in enumerate(NAMES):
            form = made.run(number * STEP, **mapped, X0=at)
            plain = made.run((len(NAMES) + number) * STEP, **mapped, X0=at)

            assert not made.results, name
            assert form == plain, name


@pytest.mark.kvm
def test_instruction_completes_the_branch_before_it() -> None:
    with lab("f8008401  str x1, [x0], #8") as made:
        vcpu: Any = made.made.vcpu
        for name, value in {"X0": MIDDLE, "PSTATE": EL1}.items():
            vcpu.set_one_reg(regs.lookup(name, ENCODINGS), value)
        leave = vcpu.run()
        assert leave.reason == ExitReason.ARM_NISV
        assert Pstate(vcpu.get_one_reg(regs.PSTATE)).BTYPE == 1
        vcpu.set_one_reg(regs.PSTATE, EL1.replace(SS=1))  # a step that the guest has not finished

        emulate(vcpu, leave, made.board, lambda leave: 0)

        assert vcpu.get_one_reg(regs.PC) == RAM_BASE + 4
        assert vcpu.get_one_reg(regs.PSTATE) == EL1.replace(BTYPE=0)


@pytest.mark.kvm
def test_access_across_the_end_of_a_device_is_split() -> None:
    with lab("a9000801  stp x1, x2, [x0]", "f8408401  ldr x1, [x0], #8") as made:
        mapped = map_memory(made.made)

        pair, _ = made.run(0, X0=DEVICE.end - 8)
        bytewise, values = made.run(STEP, **mapped, X0=DEVICE.end - 3)

    assert pair == [(0xFF8, 8, 0x1111_2222_3333_4401)]  # and one where there is no device
    assert bytewise == [(at, 1, None) for at in (0xFFD, 0xFFE, 0xFFF)]
    first = sum(Recorder().mmio_read(0xFFD + at, 1) << 8 * at for at in range(3))
    assert (values[regs.X(1)], values[regs.X(0)]) == (first, DEVICE.end + 5)


PAIR = "a9000801  stp x1, x2, [x0]"


def refusal(made: Lab, **registers: int) -> str:
    """Run the first program, which must end the run; return the error."""
    log, values = made.run(0, **registers)
    assert not log
    assert values[regs.X(1)] == 0x1111_2222_3333_4401
    assert made.made.pc == 0
    (error,) = made.results
    assert isinstance(error, GuestError)
    return error.message


@pytest.mark.kvm
@pytest.mark.parametrize(
    "line",
    [
        "885f7c01  ldxr w1, [x0]",
        "c87f0801  ldxp x1, x2, [x0]",
        "4c407801  ld1 {v1.4s}, [x0]",
        "d50b7420  dc zva, x0",
        "b8210002  ldadd w1, w2, [x0]",
        "a9400401  ldp x1, x1, [x0]",
        "f8408400  ldr x0, [x0], #8",
    ],
)
def test_other_instructions_end_the_run_with_their_name(line: str) -> None:
    word, _, text = line.partition("  ")
    with lab(line) as made:
        message = refusal(made, **map_memory(made.made))

    assert "vCPU 0 at PC 0x80000000" in message
    assert (text if text[:3] != "ld1" else f"structures (0x{word})") in message


@pytest.mark.kvm
@pytest.mark.parametrize("at", [RAM_BASE - 8, RAM_BASE + RAM_SIZE - 8])
def test_access_partly_to_ram_ends_the_run(at: int) -> None:
    with lab(PAIR) as made:
        assert "also accesses RAM" in refusal(made, X0=at)


@pytest.mark.kvm
def test_access_of_one_byte_to_ram_ends_the_run() -> None:
    with lab(PAIR) as made:
        mapped = map_memory(made.made)

        assert "also accesses RAM" in refusal(made, **mapped, X0=RAM_BASE + RAM_SIZE - 1)


@pytest.mark.kvm
def test_access_to_pages_with_different_permissions_ends_the_run() -> None:
    with lab(PAIR) as made:
        equal = map_memory(made.made, pages=(0x403, 0x403))
        log, _ = made.run(0, **equal, X0=DEVICE.end - 8)
        different = map_memory(made.made, pages=(0x403, 0x483))  # read-only

        message = refusal(made, **different, X0=DEVICE.end - 8)

    assert len(log) == 1
    assert "different attributes" in message


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("code", "is not the access that KVM reports"),
        ("code before", "is not the access that KVM reports"),
        ("direction", "is not the access that KVM reports"),
        ("tables", "its instruction cannot be read: virtual address 0x80000000: level 1"),
        ("el2", "EL2"),
        ("aarch32", "AArch32"),
    ],
)
def test_instruction_changed_since_the_exit_ends_the_run(damage: str, words: str) -> None:
    with lab(PAIR) as made:
        vcpu: Any = made.made.vcpu
        memory = made.made.memory
        for name, value in (map_memory(made.made) | {"X0": MIDDLE, "PSTATE": EL1}).items():
            vcpu.set_one_reg(regs.lookup(name, ENCODINGS), value)
        leave = vcpu.run()
        assert leave.reason == ExitReason.ARM_NISV
        if damage == "code":
            memory.write(RAM_BASE, programs.code_of("a9010801  stp x1, x2, [x0, #16]"))
        elif damage == "code before":  # it ends where the access that KVM reports begins
            memory.write(RAM_BASE, programs.code_of("a93f0801  stp x1, x2, [x0, #-16]"))
        elif damage == "direction":
            memory.write(RAM_BASE, programs.code_of("a9400801  ldp x1, x2, [x0]"))
        elif damage == "tables":
            memory.write(RAM_BASE + 0x10_0000, bytes(4096))
        elif damage == "el2":
            made.plan.features = {Feature.EL2}
        else:
            vcpu = Aarch32(vcpu)

        with pytest.raises(NotEmulated, match=words):
            emulate(vcpu, leave, made.board, lambda leave: pytest.fail("an access"))


class Aarch32:
    """A vCPU in AArch32 state, which few hosts have."""

    def __init__(self, vcpu: Any) -> None:
        self._vcpu = vcpu

    def get_one_reg(self, reg_id: int) -> int:
        return 0x1D3 if reg_id == regs.PSTATE else self._vcpu.get_one_reg(reg_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vcpu, name)
