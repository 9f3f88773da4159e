"""A snapshot loses SVE state if it leaves out a register: FFR, ZCR_EL1, Z or P.

A vCPU's SVE state is more than Z and P.  No load or store accesses FFR, and ZCR_EL1 is a system
register: a VMM that saves only the vectors resumes the guest with wrong state.  KVM lists both
registers.  Source: Linux, Documentation/virt/kvm/api.rst,
KVM_GET_REG_LIST and the register tables of arm64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyvmm.arm64 import sysregs
from pyvmm.config import Config, SveRequest
from pyvmm.errors import UsageError, VmmError
from pyvmm.kvm import regs
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.repro.model import (
    CANNOT_TELL,
    GUESTS,
    NOT_THERE,
    THERE,
    Case,
    Evidence,
    Finding,
    Option,
    Reproduction,
    Settings,
    parse_max_vl,
)
from pyvmm.repro.observe import kernel
from pyvmm.repro.vmm import Console
from pyvmm.snapshot.restorer import restore
from pyvmm.snapshot.save import save

NOTHING: Final = "nothing"
MEMORY: Final = 32 * MIB
LEN_MAX: Final = 15
FILLINGS: Final = 8  # patterns that a seed selects from


# Registers that can be left out
REGISTERS: Final = {
    "ffr": [regs.FFR()],
    "zcr_el1": [regs.lookup("ZCR_EL1", sysregs.ENCODINGS)],
    "z": [regs.Z(number) for number in range(32)],
    "p": [regs.P(number) for number in range(16)],
}
CONTROL: Final = "z"


def parse_registers(text: str) -> list[str]:
    """Read a list of registers to leave out.  Raises: UsageError."""
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in REGISTERS:
            raise UsageError(f"`leave_out`={name}: not one of {', '.join(REGISTERS)}")
    return list(dict.fromkeys(names))


def work(case: Case) -> Evidence:
    """Fill a guest's SVE registers, save it, and restore it with registers left out.

    A register that is left out has the value of a new vCPU.
    """
    found: Evidence = {"kernel": kernel(), "rows": []}
    wanted = [NOTHING, *case.settings["leave_out"]]
    wanted += [] if CONTROL in wanted else [CONTROL]
    with tempfile.TemporaryDirectory(prefix="pyvmm-repro-") as scratch:
        snapshot = Path(scratch) / "guest.snap"
        try:
            found |= _save(case, snapshot)
            for name in wanted:
                found["rows"].append(_restore(_config(case), snapshot, name))
        except VmmError as error:
            found["trouble"] = error.message
    return found


def _config(case: Case) -> Config:
    sve = SveRequest(required=True, max_vl=case.settings["guest_max_vl"])
    return Config(image=case.path("guest"), vcpus=1, memory=MEMORY, sve=sve, name="repro-snapshot")


def _save(case: Case, snapshot: Path) -> Evidence:
    """Run the guest until its registers have patterns, and save it."""
    console = Console()
    with Machine(_config(case), console.write) as vm:
        vm.start()
        _expect(console, "ready")
        vm.console.send(bytes([ord("A") + LEN_MAX]))
        _expect(console, "len")
        for _ in range(1 + case.seed % FILLINGS):  # other patterns each time
            vm.console.send(b"f")
            words = _expect(console, "filled")
        vm.pause()  # registers can be read only while the vCPU is stopped
        save(vm, snapshot)
        listed = [reg_id for reg_id in vm.vcpus[0].get_reg_list() if regs.group(reg_id) == regs.SVE]
    return {"vl": int(words[2]), "zcr": int(words[4]), "listed": len(listed)}


def _restore(config: Config, snapshot: Path, left_out: str) -> dict[str, Any]:
    """Restore the snapshot without a register, and return the guest's report."""
    console = Console()
    with restore(snapshot, console.write, name="repro-restored") as vm:
        if left_out != NOTHING:
            with Machine(config, lambda data: None) as new:
                values = {reg: new.vcpus[0].get_one_reg(reg) for reg in REGISTERS[left_out]}
            for reg, value in values.items():
                vm.vcpus[0].set_one_reg(reg, value)
        vm.start()
        vm.console.send(b"c")
        complaints = []
        while not (line := console.line()).startswith("checked"):
            complaints.append(line)
        words = line.split()
    return {
        "left_out": left_out, "wrong": int(words[1]), "vl": int(words[3]), "zcr": int(words[5]),
        "complaints": complaints[:4],
    }  # fmt: skip


def _expect(console: Console, word: str) -> list[str]:
    """Return the words of the guest's next line, which begins with ``word``.  Raises: VmmError."""
    line = console.line()
    if not line.startswith(word):
        raise VmmError(f"the guest printed {line!r} instead of {word!r}")
    return line.split()


def judge(settings: Settings, found: Evidence) -> Finding:
    """Return whether the guest lost exactly the registers that were left out."""
    if "trouble" in found:
        unsupported = "SVE" in found["trouble"]
        return Finding(
            "UNSUPPORTED" if unsupported else "INCONCLUSIVE", CANNOT_TELL, (found["trouble"],)
        )
    rows = {row["left_out"]: row for row in found["rows"]}
    if _lost(found, rows[NOTHING]):
        broken = f"with nothing left out: {_seen(rows[NOTHING])}"
        return Finding("SNAPSHOT BROKEN", THERE, (broken,))
    lost = [name for name in settings["leave_out"] if _lost(found, rows[name])]
    why = tuple(f"without {name.upper()}: {_seen(rows[name])}" for name in rows)
    if lost == settings["leave_out"]:
        return Finding("REPRODUCED", THERE, why)
    if not _lost(found, rows[CONTROL]):
        return Finding(
            "INCONCLUSIVE", CANNOT_TELL, (*why, "the guest missed even lost Z registers")
        )
    if lost:
        return Finding("REPRODUCED IN PART", THERE, why)
    return Finding("NOT REPRODUCED", NOT_THERE, why)


def _lost(found: Evidence, row: dict[str, Any]) -> bool:
    return bool(row["wrong"] or row["vl"] != found["vl"] or row["zcr"] != found["zcr"])


def _seen(row: dict[str, Any]) -> str:
    more = f" ({row['complaints'][0]})" if row["complaints"] else ""
    return f"{row['wrong']} registers wrong, VL {row['vl']} bytes, ZCR_EL1={row['zcr']}{more}"


def show(settings: Settings, found: Evidence) -> Iterator[str]:
    """Format the guest's report of each restore."""
    yield f"host kernel  {found['kernel']}"
    if "vl" in found:
        yield f"saved        VL {found['vl']} bytes, ZCR_EL1={found['zcr']}"
        yield f"KVM lists    {found['listed']} SVE registers"
    yield ""
    yield f"{'LEFT OUT':10}{'WRONG':>6}{'VL':>5}{'ZCR':>5}"
    for row in found["rows"]:
        yield f"{row['left_out']:10}{row['wrong']:6}{row['vl']:5}{row['zcr']:5}"


REPRODUCTION = Reproduction(
    name="sve-snapshot",
    title="A snapshot without FFR or ZCR_EL1 loses SVE state.",
    options=(
        Option(name="leave-out", metavar="NAME,...", default="ffr,zcr_el1", parse=parse_registers,
               help="The registers to leave out, one at a time: ffr, zcr_el1, z, p."),
        Option(name="guest-max-vl", metavar="BITS", parse=parse_max_vl,
               help="The guest's longest vector length (default: the host's)."),
    ),
    work=work,
    judge=judge,
    show=show,
    files={"guest": GUESTS / "zcr-el12"},
)  # fmt: skip
