"""A CPU model: the fields of ID registers that a guest sees, and the features of its vCPUs.

A model is a JSON file that a person can read and change:

    {"format": "pyvmm CPU model", "schema": 1, "hosts": ["a64fx.json", "max.json"],
     "sve_vls": [128, 256, 512], "pauth": false,
     "fields": {"ID_AA64ISAR0_EL1.SHA3": 0, ...}}

A field that the file does not name keeps the host's value. Lengths are in bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyvmm.arm64 import idrules, vl
from pyvmm.arm64.bits import Field
from pyvmm.base.documents import LARGEST, read_limited
from pyvmm.base.records import Record, made
from pyvmm.base.units import parse_number
from pyvmm.errors import UsageError

FORMAT: Final = "pyvmm CPU model"
SCHEMA: Final = 1
MOST_HOSTS: Final = 1000
HOW: Final = "let `pyvmm cpu common` write a model"


class CpuModel(Record, kw_only=True):
    """A CPU that several hosts can give.

    ``fields`` are values by "REGISTER.FIELD". ``vls`` is None if the model leaves SVE to the host.
    ``hosts`` are the hosts it was made for, by the names of their files.
    """

    fields: dict[str, int] = made(dict)
    vls: vl.VlSet | None = None
    pauth: bool | None = None
    hosts: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the model as JSON."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "hosts": list(self.hosts),
            "sve_vls": None if self.vls is None else sorted(self.vls),
            "pauth": self.pauth,
            "fields": self.fields,
        }


def find_field(name: str) -> tuple[str, Field]:
    """Return the register and the field that "REGISTER.FIELD" names.

    Raises: UsageError, with the fields of the register.
    """
    register, _, wanted = name.partition(".")
    found = idrules.find(name)
    if found is not None and not idrules.is_by_feature(register, wanted):
        return register, found
    if not idrules.is_identification(register):
        raise UsageError(
            f"{name[:60]}: {register[:40]} is not a register that identifies a CPU",
            hint="name a register and a field, as ID_AA64ISAR0_EL1.SHA3: `pyvmm cpu list`",
        )
    if found is None:
        has = ", ".join(field.name for field in idrules.fields(register))
        raise UsageError(
            f"{name[:60]}: {register} has no field {wanted[:40] or '(none given)'}",
            hint=f"it has {has}",
        )
    raise UsageError(
        f"{name}: KVM sets this field by the VM's features",
        hint="choose SVE, memory tags, pointer authentication and the PMU by their options",
    )


def check_fields(values: Mapping[str, int]) -> None:
    """Check that every name is a field of an ID register, and that its value fits.

    Raises: UsageError.
    """
    for name, value in values.items():
        _, field = find_field(name)
        if not 0 <= value <= field.largest:
            raise UsageError(f"{name}={value:#x}: the field holds 0 to {field.largest:#x}")


def parse_field(text: str) -> tuple[str, int]:
    """Return the name and the value in REGISTER.FIELD=VALUE; the value may have a name.

    Raises: UsageError.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text[:60]}: not REGISTER.FIELD=VALUE")
    _, field = find_field(name)
    words = {} if field.values is None else {word: int(n) for word, n in _members(field)}
    number = words[value] if value in words else parse_number(value, f"a value of {name}")
    check_fields({name: number})
    return name, number


def _members(field: Field) -> list[tuple[str, int]]:
    return [] if field.values is None else [(m.name, int(m)) for m in field.values]


def read_model(path: Path) -> CpuModel:
    """Return the model in a file.

    Raises: UsageError, if the file is damaged or not a model, or a newer pyvmm wrote it.
    """
    data = read_limited(path, HOW)
    try:
        document = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f"{path}: not a CPU model", hint=HOW)
    schema = document.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise UsageError(
            f"{path}: its schema is {schema}, this pyvmm reads up to {SCHEMA}",
            hint="use the newer pyvmm that wrote it",
        )
    try:
        return _decoded(document)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: the model is damaged: {error}", hint=HOW) from None


def _decoded(document: dict[str, Any]) -> CpuModel:
    fields, hosts = document.get("fields"), document.get("hosts", [])
    lengths, pauth = document.get("sve_vls"), document.get("pauth")
    if not isinstance(fields, dict) or not all(type(v) is int for v in fields.values()):
        raise TypeError("its fields are not names with numbers")
    if not isinstance(hosts, list) or not all(isinstance(h, str) for h in hosts):
        raise TypeError("its hosts are not a list of names")
    if pauth is not None and not isinstance(pauth, bool):
        raise TypeError("its pauth is neither true nor false")
    check_fields(fields)
    return CpuModel(
        fields=fields, vls=_lengths(lengths), pauth=pauth, hosts=tuple(hosts[:MOST_HOSTS])
    )


def _lengths(value: Any) -> vl.VlSet | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(length) is int for length in value):
        raise TypeError("its sve_vls are not a list of numbers")
    return vl.parse(",".join(map(str, value)), subject="sve_vls") if value else vl.NO_SVE
