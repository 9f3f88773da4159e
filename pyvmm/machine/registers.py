"""A vCPU's registers by name, as typed values, read and written one by one while it is parked.

    vcpu.vls                       the vector lengths it has: frozenset({128, 256, 512})
    vcpu.z[5].s.signed[3]          a lane of Z5, at the longest of them
    vcpu.p[3].b, vcpu.ffr.b        the active lanes
    vcpu.sysreg["ZCR_EL1"].LEN     a system register, with Arm's fields
    vcpu.reg["PC"], vcpu.reg[...]  any register of KVM_GET_REG_LIST
    vcpu.z[5] = vcpu.z[5].replace(s={3: -1})

A class that has registers by their ids (regs.RegisterFile) gets all this from RegisterView.
registerdump.py makes JSON of them; a run does not import it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Generic, TypeVar

from pyvmm.arm64 import vl
from pyvmm.arm64.lanes import Predicate, Scalable, Vector
from pyvmm.base.records import Record
from pyvmm.errors import KvmError, UsageError
from pyvmm.kvm import regs, sve

Value = int | Scalable | vl.VlSet

S = TypeVar("S", bound=Scalable)

Z_COUNT, P_COUNT = 32, 16
ZCRS = ("ZCR_EL1", "ZCR_EL2")


class Register(Record):
    """One register of KVM_GET_REG_LIST; ``size`` is in bytes.

    ``value`` has the register's fields or lanes, if pyvmm knows them. A register that KVM lists
    but refuses to read has None, and the errno's name in ``error``.
    """

    id: int
    name: str
    size: int
    value: Value | None
    error: str = ""


class Bank(Generic[S]):
    """The Z or the P registers, by number; ``id_of`` returns the id of a number's first slice."""

    def __init__(
        self, view: RegisterView, kind: type[S], count: int, id_of: Callable[[int], int]
    ) -> None:
        self._view = view
        self._kind = kind
        self._count = count
        self._id_of = id_of

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> S:
        return _read(self._view, self._kind, self._id(number))

    def __setitem__(self, number: int, value: S | int) -> None:
        _write(self._view, self._kind, self._id(number), value)

    def __iter__(self) -> Iterator[S]:
        return map(self.__getitem__, range(self._count))

    def _id(self, number: int) -> int:
        if not 0 <= number < self._count:
            raise IndexError(f"there is no register {number}: use 0 to {self._count - 1}")
        return self._id_of(number)


class Registers(Mapping[str, Any]):
    """Registers by Arm's name, by KVM's for pseudo-registers, or by id (0x6030000000100042).

    The names are in the order of KVM_GET_REG_LIST. An unknown name, or one of a register that
    this vCPU lacks, is a KeyError.
    """

    def __init__(self, view: RegisterView, group: int | None = None) -> None:
        self._view = view
        self._group = group

    def __getitem__(self, name: str) -> Any:
        reg_id = self._id(name)
        try:
            return self._view.get_value(reg_id)
        except KvmError as error:
            if error.errno == errno.ENOENT:
                raise KeyError(name) from error
            raise

    def __setitem__(self, name: str, value: Value) -> None:
        self._view.set_value(self._id(name), value)

    def __iter__(self) -> Iterator[str]:
        return (_name(reg_id) for reg_id in self._view.get_reg_list() if self._has(reg_id))

    def __len__(self) -> int:
        return sum(map(self._has, self._view.get_reg_list()))

    def _id(self, name: str) -> int:
        from pyvmm.arm64 import sysregs  # imported lazily: rarely used

        reg_id = regs.lookup(name, sysregs.ENCODINGS)
        if not self._has(reg_id):
            raise KeyError(name)
        return reg_id

    def _has(self, reg_id: int) -> bool:
        return self._group is None or regs.group(reg_id) == self._group


class RegisterView(regs.RegisterFile):
    """Registers by name, as typed values, for a class that has them by their ids."""

    id: int

    @property
    def vls(self) -> vl.VlSet:
        """The vector lengths in bits; none without SVE. Set them between init and finalize."""
        try:
            return sve.read_vls(self)
        except KvmError as error:
            if error.errno == errno.ENOENT:
                return vl.NO_SVE
            raise

    @vls.setter
    def vls(self, lengths: vl.VlSet) -> None:
        sve.write_vls(self, lengths)

    @property
    def vl_in_use(self) -> int:
        """The length that instructions use at the vCPU's exception level; 0 without SVE."""
        vls = self.vls
        held = {name: self.sysreg[name] for name in ZCRS if name in self.sysreg}
        return vl.in_use(vls, {**held, "PSTATE": self.get_one_reg(regs.PSTATE)}) if vls else 0

    @property
    def z(self) -> Bank[Vector]:
        """Z0 to Z31, at the longest vector length."""
        return Bank(self, Vector, Z_COUNT, regs.Z)

    @property
    def p(self) -> Bank[Predicate]:
        """P0 to P15, at the longest vector length."""
        return Bank(self, Predicate, P_COUNT, regs.P)

    @property
    def ffr(self) -> Predicate:
        """The first-fault register, at the longest vector length."""
        return _read(self, Predicate, regs.FFR())

    @ffr.setter
    def ffr(self, value: Predicate | int) -> None:
        _write(self, Predicate, regs.FFR(), value)

    @property
    def sysreg(self) -> Registers:
        """The system registers, by Arm's names."""
        return Registers(self, regs.SYSREG)

    @property
    def reg(self) -> Registers:
        """Every register, by name."""
        return Registers(self)

    def registers(self) -> Iterator[Register]:
        """Yield every register of KVM_GET_REG_LIST, in its order."""
        for held in regs.read_all(self):
            value = None if held.value is None else self._typed(held.id, held.value)
            yield Register(held.id, _name(held.id), regs.size(held.id), value, held.error)

    def get_value(self, reg_id: int) -> Value:
        """Read a register by its id: a number, with fields or lanes if pyvmm knows them."""
        if kind := _scalable(reg_id):
            return _read(self, kind, reg_id)
        return self._typed(reg_id, self.get_one_reg(reg_id))

    def _typed(self, reg_id: int, number: int) -> Value:
        """Return the register's value as a type; ``number`` is the content of its first slice."""
        if kind := _scalable(reg_id):
            longest = _longest(self, reg_id)
            return kind(number | _read_further(self, longest // kind.SHARE, reg_id), longest)
        if reg_id == regs.SVE_VLS:
            return sve.lengths(number)
        if reg_id in regs.V_REGISTERS:
            return Vector(number, 8 * regs.size(reg_id))
        from pyvmm.arm64.fields import decode

        fields = decode(_name(reg_id), number)
        return number if fields is None else fields

    def set_value(self, reg_id: int, value: Value) -> None:
        """Write a register by its id."""
        if kind := _scalable(reg_id):
            _write(self, kind, reg_id, value)
        elif isinstance(value, frozenset):
            self.vls = value
        else:
            self.set_one_reg(reg_id, int(value))


def _scalable(reg_id: int) -> type[Vector | Predicate] | None:
    """Return the type of a Z, P or FFR register by the id of its first slice, else None."""
    if reg_id in regs.Z_REGISTERS:
        return Vector
    return Predicate if reg_id in regs.P_REGISTERS else None


def _read(view: RegisterView, kind: type[S], first_id: int) -> S:
    """Read every slice of a scalable register and join them."""
    longest = _longest(view, first_id)
    first = view.get_one_reg(first_id)
    return kind(first | _read_further(view, longest // kind.SHARE, first_id), longest)


def _read_further(view: RegisterView, bits: int, first_id: int) -> int:
    """Read the slices after the first; today's vector lengths have none."""
    value = 0
    for reg_id, shift, _ in islice(_slices(bits, first_id), 1, None):
        value |= view.get_one_reg(reg_id) << shift
    return value


def _write(view: RegisterView, kind: type[S], first_id: int, value: Value) -> None:
    longest = _longest(view, first_id)
    if not isinstance(value, int | kind):
        raise TypeError(f"{_name(first_id)} holds a {kind.__name__}, not a {type(value).__name__}")
    whole = kind(int(value), longest).value  # a value that does not fit is a ValueError
    for reg_id, shift, bits in _slices(longest // kind.SHARE, first_id):
        view.set_one_reg(reg_id, whole >> shift & (1 << bits) - 1)


def _longest(view: RegisterView, first_id: int) -> int:
    vls = view.vls
    if not vls:
        raise UsageError(
            f"vCPU {view.id} has no SVE, and so no {_name(first_id)}",
            hint="use `sve.required`=True",
        )
    return max(vls)


def _slices(bits: int, first_id: int) -> Iterator[tuple[int, int, int]]:
    """Yield each slice's id, its shift in the register, and its size in bits.

    Source: Linux, Documentation/virt/kvm/api.rst, KVM_REG_ARM64_SVE_*: the longest vector length
    needs that many.
    """
    size = 8 * regs.size(first_id)
    for number, shift in enumerate(range(0, bits, size)):
        yield first_id + number, shift, size


def _name(reg_id: int) -> str:
    from pyvmm.arm64 import sysregs

    return regs.name(reg_id, sysregs.NAMES)
