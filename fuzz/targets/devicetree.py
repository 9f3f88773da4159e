"""Device trees that pyvmm makes from what the user, a snapshot or an image chooses.

libfdt is the judge: it reads each tree back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from fuzz.input import Input
from pyvmm.boot import fdt
from pyvmm.boot.dtb import MachineDescription, machine_dtb
from pyvmm.errors import VmmError
from tests.boot.judges import Libfdt, Tree

DTC = Path(__file__).resolve().parents[2] / "build/tools/dtc"
NAMES = (
    "reg", "compatible", "a", "a@0", "b@1", "@", "a@", "", "a b", "phandle", "#address-cells",
    "x" * 40, "a@b@c", "é", "status", "\0",
)  # fmt: skip
DEEPEST = 6


@functools.cache
def libfdt() -> Libfdt:
    """Return libfdt."""
    return Libfdt(DTC)


def check(data: bytes) -> None:
    """Build a tree; libfdt must read what was given, or pyvmm refuse it."""
    given = Input(data)
    if given.flag():
        _check_machine(given)
    else:
        _check_tree(given)


def _check_machine(given: Input) -> None:
    count = 1 + given.choice((0, 0, 0, 1, 1, 2, 3, 7, 8, 15, 19, 511))
    nested, aarch32 = given.flag(), given.flag()
    machine = MachineDescription(
        ram_size=given.wide(),
        ram_base=given.wide(),
        mpidrs=tuple(given.wide() + n & (1 << 64) - 1 for n in range(count)),
        initrd=(given.wide(), given.wide()) if given.flag() else None,
        kaslr_seed=given.wide() if given.flag() else None,
        rng_seed=given.take(given.below(65)),
        timer_hz=given.number(4) if given.flag() else None,
        uarts=given.below(5),
        virtio=given.below(32),
        rtc=given.flag(),
        pmu=given.flag(),
        gicv2=given.flag() and count <= 8,
        its=given.flag(),
        nested=nested and not aarch32,
        aarch32=aarch32,
        bootargs=given.rest().decode("utf-8", "surrogateescape"),
    )
    try:
        blob = machine_dtb(machine)
    except VmmError:
        return
    assert libfdt().check(blob) == 0, "libfdt refuses it"
    tree = libfdt().tree(blob)
    assert isinstance(chosen := tree["chosen"], dict)
    assert chosen["bootargs"] == machine.bootargs.encode() + b"\0"


def _check_tree(given: Input) -> None:
    root = _node(given, DEEPEST)
    reservations = [(given.wide(), given.wide()) for _ in range(given.below(4))]
    try:
        blob = fdt.build(root, reservations=reservations, boot_cpuid=given.number(4))
    except ValueError:  # a name or value that the specification forbids
        return
    assert libfdt().check(blob) == 0, "libfdt refuses it"
    assert libfdt().tree(blob) == encoded(root), "libfdt reads another tree"


def _node(given: Input, deepest: int) -> dict[str, fdt.Property | fdt.Node]:
    node: dict[str, fdt.Property | fdt.Node] = {}
    while given.left and given.below(4):
        name = given.choice(NAMES)
        kind = given.below(8)
        if kind == 0 and deepest:
            node[name] = _node(given, deepest - 1)
        elif kind < 3:
            node[name] = given.wide()
        elif kind < 5:
            node[name] = given.take(given.below(40)).decode("latin-1")
        elif kind == 5:
            node[name] = given.take(given.below(70))
        elif kind == 6:
            node[name] = tuple(given.number(4) for _ in range(given.below(8)))
        else:
            node[name] = None
    return node


def encoded(node: fdt.Node) -> Tree:
    """Return the tree that libfdt must read."""
    return {
        name: encoded(value) if isinstance(value, Mapping) else fdt.encode(value)
        for name, value in node.items()
    }


def seeds() -> Iterator[bytes]:
    """Yield machines with few and many vCPUs, and a tree."""
    yield b"\1" + bytes([0, 0]) + bytes(12) + b"console=ttyS0"
    yield bytes([1, 11, 0, 0, *range(20, 60)]) + b"quiet"
    yield b"\0" + bytes([1, 2, 0, 1, 1, 3, 5, 1, 4, 5, 3, ord("a"), ord("b"), ord("c"), 0, 0])
    yield b"\0" + bytes(range(1, 200))
