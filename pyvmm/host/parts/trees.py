"""Kernels and QEMUs in the cache, and what is remembered of Debian's suites.

A *tree* is a directory with Debian packages unpacked.  That of a kernel or a QEMU is named by the
version that was unpacked, never by the one that was asked for: linux-7.2.13-1-sid.  So two versions
never share a tree, and a tree is found by its version after its suite has moved on.

This module is on the way of every command: it reads a few small files and starts nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cache_dir
from pyvmm.base.files import write_whole
from pyvmm.base.records import Record
from pyvmm.host.settings import (
    LINUX,
    QEMU,
    SUITES,
    HostSettings,
    Product,
    is_path,
    matches,
    numbers,
)

# What a closure drags in for maintainer scripts and user interfaces; no tool here loads it.
NOT_NEEDED: Final = frozenset({
    "adduser", "debconf", "dpkg", "gcc-12-base", "ipxe-qemu", "iso-codes", "libpam-modules",
    "libpam-modules-bin", "passwd", "perl-base", "seabios", "sensible-utils",
    "shared-mime-info", "tar", "ucf",
})  # fmt: skip
QEMU_PACKAGE: Final = "qemu-system-arm"
KERNEL_PACKAGE: Final = "linux-image-"
PACKAGES: Final = ".packages"  # in a tree: the packages in it, as apt takes them
VERSION_FILE: Final = ".version"  # in a tree: what its kernel or QEMU says of itself
OLD_DAYS: Final = 7  # a look at a suite that is older is mentioned


class Tree(Record):
    """A kernel or QEMU in the cache: its Debian package's version, and its own."""

    path: Path
    suite: str
    package: str
    version: str

    @property
    def identity(self) -> str:
        """What tells it from any other."""
        return f"{self.path.name} {self.package}"


class Offer(Record):
    """A package of a suite that holds a kernel or a QEMU."""

    name: str
    package: str

    @property
    def version(self) -> str:
        """The version of what is in it, as far as the package's own tells."""
        return upstream(self.package)


class Look(Record):
    """What a suite held when its package lists were last read: newest first."""

    suite: str
    seen: float  # seconds since the epoch
    offers: dict[str, tuple[Offer, ...]]  # by a product's name
    mirror: str = ""
    gone: bool = False  # the mirror has no such suite

    @property
    def days(self) -> float:
        """How long ago that was."""
        return max(0.0, time.time() - self.seen) / 86400


def trees_dir() -> Path:
    """Where unpacked packages are kept."""
    return cache_dir("trees")


def recipe(packages: Sequence[str], drop: frozenset[str] = NOT_NEEDED) -> str:
    """A few digits that change with what a tree is made of."""
    return hashlib.sha256(" ".join([*packages, *sorted(drop)]).encode()).hexdigest()[:8]


def place(product: Product, package: str, suite: str) -> Path:
    """Where the tree of a package's version belongs; its path has no colon, as loaders want it."""
    version = package.partition(":")[2] or package
    return trees_dir() / f"{product.name}-{version}-{suite}{_end(product)}"


def cached(product: Product) -> list[Tree]:
    """Return the product's trees in the cache, newest first."""
    form = re.compile(rf"{product.name}-.*?-({'|'.join(SUITES)}){_end(product)}")
    found = [
        tree
        for path in trees_dir().glob(f"{product.name}-[0-9]*")
        if (match := form.fullmatch(path.name)) and (tree := _read(product, path, match[1]))
    ]
    return sorted(found, key=lambda tree: (order(tree.package), tree.path.name), reverse=True)


def find(product: Product, choice: str) -> Tree | None:
    """Return the tree in the cache that a choice means: no path, but a version or a suite.

    A version means the newest one in the cache.  A suite means what it held when it was last
    looked at.
    """
    if choice not in SUITES:
        return next((t for t in cached(product) if matches(choice, t.version)), None)
    seen = look(choice)
    newest = seen.offers.get(product.name, ())[:1] if seen else ()
    wanted = [(choice, offer.package) for offer in newest]
    return next((t for t in cached(product) if (t.suite, t.package) in wanted), None)


def chosen(settings: HostSettings) -> list[Tree | None]:
    """Return the trees that settings mean and that are in the cache; a path means none."""
    choices = ((LINUX, settings.kernel), (QEMU, settings.qemu))
    return [find(product, choice) for product, choice in choices if not is_path(choice)]


def look(suite: str) -> Look | None:
    """Return what a suite held when it was last looked at, or None if it never was."""
    try:
        found = json.loads(_look_path(suite).read_text())
        offers = {
            name: tuple(Offer(*offer) for offer in pairs) for name, pairs in found["offers"].items()
        }
        return Look(suite, float(found["seen"]), offers, found["mirror"], found["gone"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(seen: Look) -> None:
    """Keep what was seen, for commands that do not ask the mirror."""
    offers = {
        name: [[offer.name, offer.package] for offer in found]
        for name, found in seen.offers.items()
    }
    document = {"seen": seen.seen, "mirror": seen.mirror, "gone": seen.gone, "offers": offers}
    write_whole(_look_path(seen.suite), f"{json.dumps(document, indent=1)}\n".encode())


def old_looks(settings: HostSettings) -> list[Look]:
    """Return the looks that settings rely on (a suite was asked for) and that are old."""
    looks = [look(choice) for choice in {settings.kernel, settings.qemu} if choice in SUITES]
    return [seen for seen in looks if seen is not None and seen.days > OLD_DAYS]


def upstream(package: str) -> str:
    """The version of what a Debian package holds: 7.2 of 1:7.2+dfsg-7+deb12u18."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", package)
    return match[1] if match else package


def order(package: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A key that sorts a product's Debian versions: the upstream version, then the revision."""
    version, rest = upstream(package), package.partition(upstream(package))[2]
    own = numbers(version) if version[:1].isdigit() else ()
    return own, tuple(map(int, re.findall(r"\d+", rest)))


def _look_path(suite: str) -> Path:
    return cache_dir("apt", suite) / "looked.json"


def _end(product: Product) -> str:
    """What ends the name of a product's trees: another recipe makes another tree."""
    return f"-{recipe([QEMU_PACKAGE])}" if product.name == QEMU.name else ""


def _read(product: Product, path: Path, suite: str) -> Tree | None:
    """Read what a tree was made of; None where it does not say."""
    begin = KERNEL_PACKAGE if product.name == LINUX.name else QEMU_PACKAGE
    try:
        specs = (path / PACKAGES).read_text().split()
    except OSError:
        return None
    package = next((spec.partition("=")[2] for spec in specs if spec.startswith(begin)), None)
    if package is None:
        return None
    try:
        version = (path / VERSION_FILE).read_text().strip()
    except OSError:  # made by a pyvmm that did not ask
        version = upstream(package)
    return Tree(path, suite, package, version)
