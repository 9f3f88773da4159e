"""Whether a host can give a CPU model, and what keeps it from that."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from pyvmm.arm64 import idrules, vl
from pyvmm.arm64.bits import Field
from pyvmm.base.records import Record
from pyvmm.cpumodel.host import CpuHost
from pyvmm.cpumodel.model import CpuModel, find_field


class Fit(Enum):
    """A host's ability to give one part of a model."""

    SAME = "the same"
    CHANGED = "KVM changes it"
    LACKS = "the host has less"
    FIXED = "KVM cannot change it"


class PartFit(Record):
    """One part of a model on one host; ``has`` and ``asked`` are values as text."""

    name: str
    fit: Fit
    has: str
    asked: str

    @property
    def is_given(self) -> bool:
        """Whether the host gives the part."""
        return self.fit in (Fit.SAME, Fit.CHANGED)


def value_of(host: CpuHost, register: str, field: Field) -> int:
    """Return a field's value; a register that the host lacks reads as 0 (RAZ).

    Source: Arm ARM DDI 0487, D23.1.3: reserved ID registers read as zero.
    """
    return int(field.get(host.registers.get(register, 0)))


def fit(model: CpuModel, host: CpuHost) -> Iterator[PartFit]:
    """Yield how the host gives each part of the model."""
    for name, asked in model.fields.items():
        register, field = find_field(name)
        has = value_of(host, register, field)
        shown = (idrules.show(register, field, value) for value in (has, asked))
        yield PartFit(name, _fit(register, field, has, asked, host), *shown)
    if model.vls is not None:
        yield _lengths(model.vls, host.vls)
    if model.pauth is not None:
        fits = Fit.SAME if bool(host.pauth) == model.pauth else Fit.CHANGED
        lacks = model.pauth and not host.pauth
        words = ("none", "some")
        yield PartFit("pointer authentication", Fit.LACKS if lacks else fits,
                   host.pauth or "none", words[model.pauth])  # fmt: skip


def _fit(register: str, field: Field, has: int, asked: int, host: CpuHost) -> Fit:
    if has == asked:
        return Fit.SAME
    if idrules.lacks(register, field, asked, has):
        return Fit.LACKS
    return Fit.CHANGED if host.can_write(register, field) else Fit.FIXED


def _lengths(asked: vl.VlSet, has: vl.VlSet) -> PartFit:
    shown = (vl.show(vls) or "none" for vls in (has, asked))
    if asked == has:
        return PartFit("SVE vector lengths", Fit.SAME, *shown)
    legal = not asked or vl.is_legal(asked, has)
    return PartFit("SVE vector lengths", Fit.CHANGED if legal else Fit.LACKS, *shown)
