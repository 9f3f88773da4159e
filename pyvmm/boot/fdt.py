"""Flattened device trees, made from nested dicts.

    build({"compatible": "linux,dummy-virt", "#address-cells": 2, "#size-cells": 2,
           "memory@80000000": {"device_type": "memory", "reg": u64(0x8000_0000, ram)}})

A dict is a child node. Other values are properties. An int is one 32-bit cell, a tuple of int one
cell each. A str is a string, a tuple of str a list of strings. None is an empty property.

Source: Devicetree Specification v0.4, chapter 5, "Flattened Devicetree (DTB) Format".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Property: TypeAlias = int | str | bytes | tuple[int, ...] | tuple[str, ...] | None
Node: TypeAlias = Mapping[str, "Property | Node"]

MAGIC = 0xD00D_FEED
VERSION = 17
LAST_COMPATIBLE_VERSION = 16

# Tokens of the structure block
BEGIN_NODE = 1
END_NODE = 2
PROP = 3
END = 9

HEADER_SIZE = 40
_PROPERTY = struct.Struct(">3I")  # PROP, the value's length, the offset of its name

# Source: Devicetree Specification v0.4, 2.2.1 (node names) and 2.2.4.1 (property names). Existing
# bindings exceed the lengths given there, and no parser checks them.
_IN_NODE_NAMES = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789,._+-"
)  # a node name may also have one @, before the unit address
_IN_PROPERTY_NAMES = _IN_NODE_NAMES | frozenset("?#")


def u64(*values: int) -> bytes:
    """Encode 64-bit numbers, two cells each.  Raises: ValueError, where one does not fit."""
    return b"".join(_number(value, 8) for value in values)


def build(
    root: Node, *, reservations: Sequence[tuple[int, int]] = (), boot_cpuid: int = 0
) -> bytes:
    """Make the device tree blob of ``root``.

    ``reservations`` are (address, size) of memory that the guest must not use. ``boot_cpuid`` is
    the ``reg`` of the CPU that boots.

    Raises:
        ValueError: a name is invalid, a value does not fit, or two nodes have the same phandle.
    """
    structure = _Structure()
    structure.add_node("", root)
    tree = structure.tokens + _token(END)
    names = bytes(structure.names)
    memory = b"".join(u64(*entry) for entry in (*reservations, (0, 0)))
    off_memory = HEADER_SIZE  # 40 bytes, so the reservation block is 8-byte aligned, as required
    off_tree = off_memory + len(memory)
    off_names = off_tree + len(tree)
    size = off_names + len(names)
    header = (
        MAGIC, size, off_tree, off_names, off_memory,
        VERSION, LAST_COMPATIBLE_VERSION, boot_cpuid, len(names), len(tree),
    )  # fmt: skip
    return encode(header) + memory + tree + names


class _Structure:
    """The structure block and the strings block under construction."""

    def __init__(self) -> None:
        self.tokens = bytearray()
        self.names = bytearray()
        self._name_offsets: dict[str, int] = {}
        self._phandles: dict[bytes, str] = {}

    def add_node(self, path: str, node: Node) -> None:
        """Add a node with its descendants. The format requires properties before children."""
        name = path.rpartition("/")[2]
        self.tokens += _token(BEGIN_NODE) + _padded(name.encode() + b"\0")
        children = {}
        for key, value in node.items():
            if isinstance(value, Mapping):
                children[key] = value
            else:
                self._add_property(path, key, encode(value))
        for key, child in children.items():
            if not _is_node_name(key):
                raise ValueError(f"{path}/: {key!r} is not a node name")
            self.add_node(f"{path}/{key}", child)
        self.tokens += _token(END_NODE)

    def _add_property(self, path: str, name: str, value: bytes) -> None:
        if not name or not _IN_PROPERTY_NAMES.issuperset(name):
            raise ValueError(f"{path or '/'}: {name!r} is not a property name")
        if name == "phandle":
            other = self._phandles.setdefault(value, path)
            if other != path:
                raise ValueError(f"{path} and {other} have the same phandle")
        if name not in self._name_offsets:
            self._name_offsets[name] = len(self.names)
            self.names += name.encode() + b"\0"
        self.tokens += _PROPERTY.pack(PROP, len(value), self._name_offsets[name])
        self.tokens += _padded(value)


def _is_node_name(text: str) -> bool:
    name, at, address = text.partition("@")
    parts = (name, address) if at else (name,)
    return all(part and _IN_NODE_NAMES.issuperset(part) for part in parts)


def encode(value: Property) -> bytes:
    """Encode a property's value."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"a device tree string cannot contain a NUL: {value!r}")
        return value.encode() + b"\0"
    if isinstance(value, int):
        return _number(value, 4)
    return b"".join(encode(item) for item in value)


def _number(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "big")
    except OverflowError:
        raise ValueError(f"{value:#x} does not fit into {8 * size} bits") from None


def _token(token: int) -> bytes:
    return token.to_bytes(4, "big")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
