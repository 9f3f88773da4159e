"""A probe of a host's SVE, and its JSON file for use on another machine.

Lengths are in bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from pyvmm.arm64 import vl
from pyvmm.base.files import write_whole
from pyvmm.base.records import Record
from pyvmm.errors import UsageError

FORMAT = "pyvmm host probe"
SCHEMA = 1
LARGEST = 1 << 20  # bytes; a probe has a few hundred
HOW = "let `pyvmm sve list` on that host write a probe"


class Difference(Record):
    """A difference between KVM and the host; ``known`` is false if it may be a bug."""

    text: str
    known: bool


class Probe(Record, kw_only=True):
    """A host, and its SVE vector lengths in guests and in its own programs.

    ``machine`` describes the computer, and ``emulated`` is whether pyvmm emulates it.  ``midrs``
    are the MIDR_EL1 values of its CPUs.  ``vls`` are KVM's lengths.  ``prctl`` and ``rdvl`` are
    those of the host's programs, by PR_SVE_SET_VL and by the instruction.
    """

    kernel: str
    machine: str
    emulated: bool
    midrs: tuple[int, ...]
    vls: vl.VlSet
    prctl: vl.VlSet
    rdvl: vl.VlSet

    def differences(self) -> Iterator[Difference]:
        """Yield the differences between KVM's lengths and the host's, with possible reasons."""
        if self.rdvl != self.prctl:
            yield Difference(
                f"RDVL reads {_show(self.rdvl)}, but prctl(PR_SVE_SET_VL) set "
                f"{_show(self.prctl)}: the instruction and the kernel contradict each other",
                known=False,
            )
        if surplus := self.vls - self.prctl:
            yield Difference(
                f"KVM offers {vl.words(surplus)}, which the host's programs lack",
                known=False,
            )
        if self.prctl and not self.vls:
            yield Difference(
                "the host's programs have SVE, but guests lack it: this KVM does not support it "
                "(before Linux v5.2, or in protected mode)",
                known=True,
            )
            return
        longest = max(self.vls, default=0)
        lacking = self.prctl - self.vls
        if above := {length for length in lacking if length > longest}:
            # Source: Linux, sve_setup() in arch/arm64/kernel/fpsimd.c, max_virtualisable_vl;
            # kvm_arm_init_sve() in arch/arm64/kvm/reset.c
            yield Difference(
                f"KVM does not offer {vl.words(above)}: it stops below the shortest length that "
                "only some of the CPUs have (the kernel log then has: SVE vector length for "
                "guests limited)",
                known=True,
            )
        if inside := {length for length in lacking if length < longest}:
            yield Difference(
                f"KVM does not offer {vl.words(inside)}, though it offers a longer length",
                known=False,
            )

    def document(self) -> dict[str, Any]:
        """Return the probe as JSON."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "host": {
                "kernel": self.kernel,
                "machine": self.machine,
                "emulated": self.emulated,
                "midr_el1": [f"{midr:#010x}" for midr in self.midrs],
            },
            "sve": {
                "unit": "bits",
                "kvm": sorted(self.vls),
                "prctl": sorted(self.prctl),
                "rdvl": sorted(self.rdvl),
            },
        }

    def write(self, path: Path) -> None:
        """Write the probe to a file.

        Raises: UsageError.
        """
        write_whole(path, (json.dumps(self.document(), indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a probe from a file.

        Raises: UsageError, if it is damaged or not a probe, or a newer pyvmm wrote it.
        """
        return cls.of(_document(path), str(path))

    @classmethod
    def of(cls, document: object, name: str) -> Self:
        """Return the probe in a JSON document; ``name`` is for messages.

        Raises: UsageError.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise UsageError(f"{name}: this JSON is not the probe of a host", hint=HOW)
        schema = document.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise UsageError(
                f"{name}: its schema is {schema}, this pyvmm reads up to {SCHEMA}",
                hint="use the newer pyvmm that wrote it, or probe the host again",
            )
        if schema != SCHEMA:
            raise _damaged(name, "schema", schema)
        get = partial(_field, document, name)
        return cls(
            kernel=get("host", "kernel", _text),
            machine=get("host", "machine", _text),
            emulated=get("host", "emulated", _flag),
            midrs=get("host", "midr_el1", _midrs),
            vls=get("sve", "kvm", _lengths),
            prctl=get("sve", "prctl", _lengths),
            rdvl=get("sve", "rdvl", _lengths),
        )


def _field(
    document: dict[str, Any], name: str, part: str, key: str, reader: Callable[[Any], Any]
) -> Any:
    """Convert an untrusted field with ``reader``, which raises ValueError or TypeError."""
    fields = document.get(part)
    value = fields.get(key) if isinstance(fields, dict) else None
    try:
        return reader(value)
    except (TypeError, ValueError):
        raise _damaged(name, f"{part}.{key}", value) from None
    except vl.TextError as error:
        raise UsageError(f"{name}: {part}.{key}: {error.message}", hint=HOW) from None


def _document(path: Path) -> object:
    """Parse an untrusted JSON file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=HOW) from error
    if len(data) > LARGEST:
        raise UsageError(f"{path}: too large for the probe of a host", hint=HOW)
    if not data.strip():
        raise UsageError(f"{path}: the file is empty", hint=HOW)
    try:
        document: object = json.loads(data)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise UsageError(f"{path}: not JSON, or incomplete: {reason}", hint=HOW) from None
    except (ValueError, RecursionError):  # not text; too deeply nested
        raise UsageError(f"{path}: not JSON", hint=HOW) from None
    return document


def _damaged(name: str, field: str, value: object) -> UsageError:
    said = json.dumps(value)
    short = said if len(said) <= 40 else f"{said[:40]}..."
    return UsageError(f"{name}: the probe is damaged: {field} is {short}", hint=HOW)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(value)
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _midrs(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(value)
    midrs = tuple(int(_text(midr), 16) for midr in value)
    if not all(0 <= midr < 1 << 64 for midr in midrs):
        raise ValueError(value)
    return midrs


def _lengths(value: Any) -> vl.VlSet:
    """Read a list of lengths in bits; vl.parse() detects other units."""
    if not isinstance(value, list) or not all(type(length) is int for length in value):
        raise TypeError(value)
    if not value:
        return vl.NO_SVE
    vls = vl.parse(",".join(map(str, value)))
    if vl.QUADWORD not in vls:
        raise ValueError(value)
    return vls


def _show(vls: vl.VlSet) -> str:
    return vl.show(vls) or "nothing"
