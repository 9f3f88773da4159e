"""The meaning of a register's value, as text."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.arm64.bits import Bits, Field
from pyvmm.arm64.cpuid import Ccsidr, Ctr, Dczid, line_bytes
from pyvmm.arm64.esr import DabtIss, Esr, explain_esr
from pyvmm.arm64.fields import decode
from pyvmm.arm64.pstate import Pstate, Pstate32
from pyvmm.base.units import show_size

# Names of zero for a feature that is absent or unchanged
NOTHING = frozenset({
    "NI", "NONE", "NO_CACHE", "NI_IMPDEF", "UNPREDICTABLE", "IGNR", "STAGE_1", "ASYNC", "NV_NV2",
    "NC",
})  # fmt: skip
PRESENT = "IMP"  # the name of a value for a feature that is present
BRANCH_TYPES = ("--", "jc", "-c", "j-")


def explain(name: str, value: int) -> str:
    """Describe a register's fields that are not zero; empty for one without fields."""
    fields = decode(name, value)
    if fields is None:
        return ""
    if isinstance(fields, Pstate | Pstate32):
        return pstate_words(fields)
    if isinstance(fields, Esr):
        return esr_words(fields)
    more = _ADDED.get(type(fields))
    parts = [more(fields)] if more else []
    return " ".join([*parts, *field_words(fields)])


def field_words(fields: Bits) -> list[str]:
    """Return the fields to show: NAME for a set bit or a present feature, else NAME=VALUE."""
    return [_field_word(field, fields) for field in fields.fields() if _is_shown(field, fields)]


def _is_shown(field: Field, fields: Bits) -> bool:
    if field.get(fields):
        return True
    return field.values is not None and field.word(fields) not in {"0", *NOTHING}


def _field_word(field: Field, fields: Bits) -> str:
    word = field.word(fields)
    if word == PRESENT or (field.hi == field.lo and field.values is None):
        return field.name
    return f"{field.name}={word}"


def pstate_words(state: Pstate | Pstate32) -> str:
    """Write the processor state as Linux does: a capital letter or + is a set bit."""
    words = [_mode(state), _letters(state, "NZCV")]
    if isinstance(state, Pstate32):
        words += ["Q" if state.Q else "q", "T32" if state.T else "A32", "BE" if state.E else "LE"]
        words += [_letters(state, "AIF"), _signed(state, "PAN DIT SSBS")]
    else:
        words += [_letters(state, "DAIF"), _signed(state, "PAN UAO TCO DIT SSBS")]
        words.append(f"BTYPE={BRANCH_TYPES[state.BTYPE]}")
    return " ".join(words + [name for name in ("SS", "IL") if getattr(state, name)])


def _mode(state: Pstate | Pstate32) -> str:
    field = type(state).M
    word = field.word(state)
    return f"M={word}" if word.isdecimal() or word.startswith("0x") else word


def _letters(state: Bits, names: str) -> str:
    return "".join(name if getattr(state, name) else name.lower() for name in names)


def _signed(state: Bits, names: str) -> str:
    return " ".join(f"{'+' if getattr(state, name) else '-'}{name}" for name in names.split())


def esr_words(esr: Esr) -> str:
    """Describe the cause of the exception, then the fields."""
    iss = esr.iss
    fields = field_words(iss) if iss is not None else [f"ISS={esr.ISS:#x}"] * bool(esr.ISS)
    if isinstance(iss, DabtIss) and not iss.ISV:
        fields = [word for word in fields if word != DabtIss.SAS.name + "=BYTE"]
    if esr.ISS2:
        fields.append(f"ISS2={esr.ISS2:#x}")
    words = " ".join([f"EC={Esr.EC.word(esr)}", *["IL"] * esr.IL, *fields])
    return f"{explain_esr(esr)} ({words})"


def _ctr(value: int) -> str:
    ctr = Ctr(value)
    data, instructions = line_bytes(ctr.DminLine), line_bytes(ctr.IminLine)
    return f"lines of {data} bytes for data, {instructions} for instructions;"


def _dczid(value: int) -> str:
    return f"DC ZVA zeroes {line_bytes(Dczid(value).BS)} bytes;"


def _ccsidr(value: int) -> str:
    cache = Ccsidr(value)
    sets, ways, line = cache.NumSets + 1, cache.Associativity + 1, 1 << cache.LineSize + 4
    return f"{show_size(sets * ways * line)}: {sets} sets, {ways} ways, lines of {line} bytes;"


_ADDED: dict[type[Bits], Callable[[int], str]] = {
    Ctr: _ctr,
    Dczid: _dczid,
    Ccsidr: _ccsidr,
}
