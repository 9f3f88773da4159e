from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.boot import fdt
from tests.boot.judges import Libfdt, Tree, run_dtc

SMALL: fdt.Node = {
    "compatible": ("test,small", "test"),
    "#address-cells": 2,
    "#size-cells": 2,
    "memory@80000000": {"device_type": "memory", "reg": fdt.u64(0x8000_0000, 0x1_0000_0000)},
    "chosen": {"bootargs": "quiet", "empty": None, "raw": b"\x01\x02\x03"},
}


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, b""),
        (1, b"\0\0\0\x01"),
        (0xFFFF_FFFF, b"\xff\xff\xff\xff"),
        ((1, 2), b"\0\0\0\x01\0\0\0\x02"),
        ("text", b"text\0"),
        ("", b"\0"),
        (("a", "bc"), b"a\0bc\0"),
        ("\N{SNOWMAN}", b"\xe2\x98\x83\0"),
        (b"\x07", b"\x07"),
        ((), b""),
    ],
)
def test_encode_returns_the_bytes_of_each_type(value: fdt.Property, encoded: bytes) -> None:
    assert fdt.encode(value) == encoded


def test_u64_makes_two_cells_of_a_number() -> None:
    assert fdt.u64(0x1_2345_6789, 1) == bytes.fromhex("0000000123456789 0000000000000001")


@pytest.mark.parametrize(
    "node",
    [
        {"too-big": 1 << 32},
        {"negative": -1},
        {"nul": "a\0b"},
        {"": 1},
        {"bad name": 1},
        {"a/b": {}},
        {"a@b@c": {}},
        {"": {}},
        {"a": {"phandle": 1}, "b": {"phandle": 1}},
    ],
)
def test_build_refuses_invalid_names_and_values(node: fdt.Node) -> None:
    with pytest.raises(ValueError, match=r"."):
        fdt.build(node)


@pytest.mark.parametrize(
    "more",
    [{"boot_cpuid": 1 << 32}, {"boot_cpuid": -1}, {"reservations": [(1 << 64, 1)]}],
)
def test_build_refuses_numbers_that_do_not_fit(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        fdt.build(SMALL, **more)


def test_header_has_the_size_and_the_boot_cpu(libfdt: Libfdt) -> None:
    blob = fdt.build(SMALL, boot_cpuid=3)
    magic, size, *_, boot_cpuid, _, _ = struct.unpack_from(">10I", blob)

    assert magic == 0xD00D_FEED
    assert size == len(blob)
    assert boot_cpuid == 3


def test_dtc_decompiles_a_tree_to_its_source(dtc: Path) -> None:
    source, warnings = run_dtc(dtc, fdt.build(SMALL))

    assert warnings == ""
    assert source.decode().replace("\t", "").splitlines() == [
        "/dts-v1/;",
        "",
        "/ {",
        'compatible = "test,small\\0test";',
        "#address-cells = <0x02>;",
        "#size-cells = <0x02>;",
        "",
        "memory@80000000 {",
        'device_type = "memory";',
        "reg = <0x00 0x80000000 0x01 0x00>;",
        "};",
        "",
        "chosen {",
        'bootargs = "quiet";',
        "empty;",
        "raw = [01 02 03];",
        "};",
        "};",
    ]


def test_dtc_rebuilds_the_same_tree(dtc: Path, libfdt: Libfdt) -> None:
    blob = fdt.build(SMALL, reservations=[(0x1000, 0x2000)])

    again, _ = run_dtc(dtc, blob, "dtb")

    assert libfdt.tree(again) == libfdt.tree(blob)


def test_build_writes_memory_reservations(libfdt: Libfdt) -> None:
    reservations = [(0x8000_0000, 0x1000), (1 << 40, 1 << 30)]

    blob = fdt.build({}, reservations=reservations)

    assert libfdt.check(blob) == 0
    assert libfdt.reservations(blob) == reservations


NAMES = st.from_regex(r"[a-z][a-z0-9,.+-]{0,20}", fullmatch=True)
VALUES = st.one_of(
    st.none(),
    st.integers(0, 0xFFFF_FFFF),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers(0, 0xFFFF_FFFF), max_size=5).map(tuple),
    st.lists(st.sampled_from(["one", "two", ""]), max_size=4).map(tuple),
)
TREES = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=5),
    lambda nodes: st.dictionaries(NAMES, st.one_of(VALUES, nodes), max_size=6),
    max_leaves=20,
)


def encoded(node: fdt.Node) -> Tree:
    """Return the tree that libfdt should read."""
    return {
        name: encoded(value) if isinstance(value, Mapping) else fdt.encode(value)
        for name, value in node.items()
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_libfdt_reads_any_tree_back(libfdt: Libfdt, tree: fdt.Node) -> None:
    blob = fdt.build(tree)

    assert libfdt.check(blob) == 0
    assert libfdt.tree(blob) == encoded(tree)
