"""The commands of gdb's `monitor` for a running VM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pyvmm.arm64 import vl
from pyvmm.base.units import parse_number
from pyvmm.debugger.addresses import translation
from pyvmm.debugger.values import vectors
from pyvmm.errors import UsageError
from pyvmm.machine.counts import totals
from pyvmm.machine.machine import Machine
from pyvmm.machine.vcpus import MachineVcpu

HELP = (
    "info registers    every register of the vCPU that KVM lists",
    "sve               the vCPU's vector lengths",
    "exits             what the vCPUs have left KVM for",
    "translate ADDR    where a virtual address is, by the vCPU's page tables",
    "physical on|off   whether memory commands use physical addresses",
    "save FILE         save the VM to FILE, unless the VM is confined",
    "reset             reset the VM, as the guest can itself",
    "quit              end the VM",
)


def run_command(
    machine: Machine, vcpu: MachineVcpu, words: Sequence[str], quit_: Callable[[], None]
) -> Iterable[str]:
    """Run a command for a stopped VM, and yield its output.

    Raises: VmmError.
    """
    match list(words):
        case ["info", "registers"]:
            return _registers(machine, vcpu)
        case ["sve"]:
            return _lengths(machine, vcpu)
        case ["exits"]:
            counted = totals(machine.counts.exits())
            return [f"{cause:24} {count}" for cause, count in counted.items() if count]
        case ["translate", address]:
            memory = machine.board.addressable
            number = parse_number(address, "an address") % (1 << 64)
            found = translation(vcpu, lambda gpa, size: bytes(memory.view(gpa, size)), number)
            return [" ".join(f"{key}={value}" for key, value in found.items())]
        case ["save", file]:
            return _save(machine, Path(file))
        case ["reset"]:
            machine.reset()
            return ["reset"]
        case ["quit"]:
            quit_()
            return ["ended"]
        case [] | ["help"]:
            return HELP
    raise UsageError(f"unknown command {' '.join(words)[:60]!r}", hint="monitor help")


def _registers(machine: Machine, vcpu: MachineVcpu) -> Iterator[str]:
    from pyvmm.machine.registerdump import read_registers

    found = read_registers(vcpu, machine.vls)
    yield from (f"{name:20} {value}" for name, value in found["registers"].items())
    yield from (f"{name:20} {error}" for name, error in found["errors"].items())


def _lengths(machine: Machine, vcpu: MachineVcpu) -> Iterator[str]:
    has = vectors(vcpu, machine.vls)
    if not has.vls:
        yield "the VM has no SVE"
        return
    yield f"vCPU {vcpu.id} uses {has.current} bits, and has {vl.show(has.vls)}"


def _save(machine: Machine, file: Path) -> Iterator[str]:
    from pyvmm.snapshot.save import save

    if machine.breakpoints:
        raise UsageError("breakpoints are in the guest: delete them first")
    try:
        saved = save(machine, file)
    except UsageError as error:
        name = machine.config.name
        raise UsageError(
            f"{error.message} (a confined VM opens no files)",
            hint=f"run `pyvmm save {name} {file}` in another terminal; `resume` keeps the VM",
        ) from error
    yield f"saved {file}: {saved.identity[:12]}"
    yield from saved.warnings
