"""vCPUs that misreport what the kernel did, and the cases that must detect it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from typing import Any

from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.svecheck import ids


class Liar:
    """A vCPU that passes calls on; a subclass changes some of them."""

    def __init__(self, honest: Vcpu) -> None:
        self.honest = honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self.honest, name)


def refuse(number: int) -> None:
    raise KvmError("a lie", "", number)


def forgive(call: Callable[[], object]) -> None:
    """Make a call, and ignore the kernel's refusal."""
    with contextlib.suppress(KvmError):
        call()


class HidesTheLongest(Liar):
    def get_one_reg(self, reg: int) -> int:
        value = self.honest.get_one_reg(reg)
        return value ^ 1 << value.bit_length() - 1 if reg == regs.SVE_VLS else value


class TakesAnySet(Liar):
    def set_one_reg(self, reg: int, value: int) -> None:
        if reg == regs.SVE_VLS:
            forgive(lambda: self.honest.set_one_reg(reg, value))
        else:
            self.honest.set_one_reg(reg, value)


class EarlyVqPresent(Liar):
    """Compares a bit with a bool, as Linux 5.2-rc6 did: only the bit of 128 equals 1."""

    def set_one_reg(self, reg: int, value: int) -> None:
        if reg == regs.SVE_VLS and value > 1:
            refuse(errno.EINVAL)
        self.honest.set_one_reg(reg, value)


class LosesHighBits(Liar):
    """Keeps only the low 32 bits of the set."""

    def set_one_reg(self, reg: int, value: int) -> None:
        self.honest.set_one_reg(reg, value & 0xFFFF_FFFF if reg == regs.SVE_VLS else value)


class SwapsSets(Liar):
    """Changes the set, but reports a refusal."""

    def set_one_reg(self, reg: int, value: int) -> None:
        try:
            self.honest.set_one_reg(reg, value)
        except KvmError:
            self.honest.set_one_reg(reg, 1)
            raise


class AcceptsSurplusSlices(Liar):
    def get_one_reg(self, reg: int) -> int:
        return 0 if reg in ids.SURPLUS.values() else self.honest.get_one_reg(reg)


class AcceptsV(Liar):
    def get_one_reg(self, reg: int) -> int:
        return 0 if reg in ids.V.values() else self.honest.get_one_reg(reg)


class AcceptsAnySize(Liar):
    def get_one_reg(self, reg: int) -> int:
        try:
            return self.honest.get_one_reg(reg)
        except KvmError as error:
            if error.errno == errno.EINVAL and regs.group(reg) == regs.SVE:
                return 0
            raise


class FlipsABitOfZ31(Liar):
    def get_one_reg(self, reg: int) -> int:
        return self.honest.get_one_reg(reg) ^ (1 << 127 if reg == regs.Z(31) else 0)


class FlipsABitOfZ0(Liar):
    def get_one_reg(self, reg: int) -> int:
        return self.honest.get_one_reg(reg) ^ (1 if reg == regs.Z(0) else 0)


class LosesWritesToP1(Liar):
    def set_one_reg(self, reg: int, value: int) -> None:
        if reg != regs.P(1):
            self.honest.set_one_reg(reg, value)


class FinalizesTwice(Liar):
    def finalize(self, feature: int) -> None:
        forgive(lambda: self.honest.finalize(feature))


class WritesAFinalSet(Liar):
    def set_one_reg(self, reg: int, value: int) -> None:
        try:
            self.honest.set_one_reg(reg, value)
        except KvmError as error:
            if error.errno != errno.EPERM:
                raise


class AnotherErrno(Liar):
    """Reports EBUSY instead of EPERM."""

    def run(self) -> Exit:
        try:
            return self.honest.run()
        except KvmError as error:
            raise KvmError("KVM_RUN", "", errno.EBUSY) from error


class RunsAnyway(Liar):
    def run(self) -> Exit:
        try:
            return self.honest.run()
        except KvmError:
            return Exit(ExitReason.INTR)


class IgnoresInitAgain(Liar):
    done = False

    def init(self, cpu: int, features: Iterable[int]) -> None:
        if not self.done:
            self.honest.init(cpu, features)
        self.done = True


class LosesTheSetInInitAgain(Liar):
    """Resets all, but keeps a chosen set that is not final."""

    def init(self, cpu: int, features: Iterable[int]) -> None:
        kept = None
        with contextlib.suppress(KvmError):
            kept = self.honest.get_one_reg(regs.SVE_VLS)
        self.honest.init(cpu, features)
        if kept is not None:
            forgive(lambda: self.honest.set_one_reg(regs.SVE_VLS, kept))


class InitsAnyFeatures(Liar):
    def init(self, cpu: int, features: Iterable[int]) -> None:
        forgive(lambda: self.honest.init(cpu, features))


class ListsASurplusSlice(Liar):
    def get_reg_list(self) -> list[int]:
        return [*self.honest.get_reg_list(), regs.Z(7, 1)]


class ListsNoP15(Liar):
    def get_reg_list(self) -> list[int]:
        return [reg for reg in self.honest.get_reg_list() if reg != regs.P(15)]


class ListsBackwards(Liar):
    def get_reg_list(self) -> list[int]:
        return self.honest.get_reg_list()[::-1]


class ListsTheSetLast(Liar):
    def get_reg_list(self) -> list[int]:
        listed = self.honest.get_reg_list()
        listed.sort(key=lambda reg: reg == regs.SVE_VLS)
        return listed


class ListsTwice(Liar):
    def get_reg_list(self) -> list[int]:
        listed = self.honest.get_reg_list()
        return [*listed, listed[-1]]


class HalvesWhatTheGuestSays(Liar):
    def run(self) -> Exit:
        left = self.honest.run()
        left.data //= 2
        return left


class HidesSve(Liar):
    def get_one_reg(self, reg: int) -> int:
        value = self.honest.get_one_reg(reg)
        return value & ~(0xF << 32) if reg == ids.ID_AA64PFR0_EL1 else value


class InventsZfr0(Liar):
    def get_one_reg(self, reg: int) -> int:
        return 1 if reg == ids.ID_AA64ZFR0_EL1 else self.honest.get_one_reg(reg)


class Hangs(Liar):
    """Is kicked before it runs, as a guest that never reports finally is."""

    def run(self) -> Exit:
        self.honest.kick()
        return self.honest.run()


# Each lie, and the cases that must detect it.
LIES: dict[type[Liar], tuple[str, ...]] = {
    HidesTheLongest: ("sets/initial", "sets/encoding", "sets/legal-are-taken", "again/the-set-is-"
                      "chosen-anew", "vcpus/another-s-set"),
    TakesAnySet: ("sets/empty", "sets/without-128", "sets/without-one-between",
                  "sets/the-longest-alone", "sets/beyond-the-host", "sets/accepted-though-not",
                  "sets/beyond-the-architecture", "sets/every-set-of-short-lengths",
                  "states/set-wrong-vls-initialised", "states/set-vls-finalized"),
    EarlyVqPresent: ("sets/legal-are-taken", "sets/refused-though-legal",
                     "sets/every-set-of-short-lengths", "sets/can-grow-again"),
    LosesHighBits: ("sets/accepted-though-not", "sets/beyond-the-host"),
    SwapsSets: ("sets/refused-set-changes-nothing",),
    AcceptsSurplusSlices: ("states/get-surplus-finalized", "states/get-surplus-initialised",
                           "registers/slices-beyond-each-length"),
    AcceptsV: ("states/get-v-finalized", "states/get-v-initialised"),
    AcceptsAnySize: ("registers/z-of-another-size", "registers/p-and-ffr-of-another-size",
                     "registers/set-of-another-size", "registers/numbers-without-a-register"),
    FlipsABitOfZ31: ("registers/values-come-back", "again/sve-registers-become-zero",
                     "again/sve-registers-are-zero-at-first"),
    FlipsABitOfZ0: ("guest/what-it-writes", "vcpus/init-of-another"),
    LosesWritesToP1: ("guest/what-we-write", "registers/values-come-back"),
    FinalizesTwice: ("states/finalize-finalized", "states/finalize-without-sve",
                     "states/finalize-others-initialised", "again/it-stays-final"),
    WritesAFinalSet: ("states/set-vls-finalized", "again/it-stays-final", "reglist/writable"),
    AnotherErrno: ("states/run-initialised", "vcpus/finalize-is-for-one"),
    RunsAnyway: ("states/run-created", "states/run-initialised"),
    IgnoresInitAgain: ("again/sve-registers-become-zero", "again/the-set-is-chosen-anew",
                       "again/a-guest-s-core-registers-are-reset", "again/zcr-is-reset",
                       "again/a-guest-s-sve-registers-become-zero",
                       "again/other-features-finalized"),
    LosesTheSetInInitAgain: ("again/the-set-is-chosen-anew",),
    InitsAnyFeatures: ("states/init-unknown-feature", "states/init-unknown-target",
                       "again/other-features-ran"),
    ListsASurplusSlice: ("reglist/surplus-slices", "reglist/slices-by-the-longest-length",
                         "reglist/sve-registers", "reglist/readable"),
    ListsNoP15: ("reglist/sve-registers", "reglist/what-sve-changes", "reglist/too-large"),
    ListsBackwards: ("reglist/begins-with", "reglist/order-of-the-others",
                     "reglist/order-of-sve-registers"),
    ListsTheSetLast: ("reglist/begins-with",),
    ListsTwice: ("reglist/twice",),
    HalvesWhatTheGuestSays: ("guest/lengths", "guest/zcr-bits", "guest/pfr0-with-sve",
                             "vcpus/different-lengths-seen", "guest/v-is-the-low-part-of-z"),
    HidesSve: ("registers/pfr0-with-sve", "guest/pfr0-with-sve"),
    InventsZfr0: ("registers/zfr0-without-sve", "guest/zfr0-without-sve"),
    Hangs: ("guest/lengths", "guest/what-it-writes", "vcpus/one-that-is-not-final-yet"),
}  # fmt: skip
