"""Kernels and QEMUs in the cache, and the last known contents of Debian's suites.

A *tree* is a directory with unpacked Debian packages.  The tree of a kernel or a QEMU has the
unpacked version in its name, not the requested one: linux-7.2.13-1-sid.  So each version has its
own tree, which is found even after its suite got a newer one.

Every command in an emulated host imports this module: it reads a few small files.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

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

# Dependencies that no tool here loads: they are for maintainer scripts and user interfaces.
NOT_NEEDED: Final = frozenset({
    "adduser", "debconf", "dpkg", "gcc-12-base", "ipxe-qemu", "iso-codes", "libpam-modules",
    "libpam-modules-bin", "passwd", "perl-base", "seabios", "sensible-utils",
    "shared-mime-info", "tar", "ucf",
})  # fmt: skip
QEMU_PACKAGE: Final = "qemu-system-arm"
KERNEL_PACKAGE: Final = "linux-image-"
PACKAGES: Final = ".packages"  # in a tree: the packages in it, as apt takes them
VERSION_FILE: Final = ".version"  # in a tree: the version that its kernel or QEMU prints
OLD_DAYS: Final = 7  # a start warns if a suite's package lists are older


class Tree(Record):
    """A kernel or QEMU in the cache: the version of its Debian package, and its own version."""

    path: Path
    suite: str
    package: str
    version: str

    @property
    def identity(self) -> str:
        """A text that identifies the tree."""
        return f"{self.path.name} {self.package}"


class Offer(NamedTuple):
    """A package of a suite with a kernel or a QEMU."""

    name: str
    package: str

    @property
    def version(self) -> str:
        """The version of its program, taken from the package's version."""
        return upstream(self.package)


class SuiteContents(Record):
    """The contents of a suite when its package lists were last read, newest first."""

    suite: str
    seen: float  # seconds since the epoch
    offers: dict[str, tuple[Offer, ...]]  # by a product's name
    mirror: str = ""
    gone: bool = False  # the mirror has no such suite

    @property
    def days(self) -> float:
        """The days since the lists were read."""
        return max(0.0, time.time() - self.seen) / 86400


def trees_dir() -> Path:
    """Return the directory of unpacked packages."""
    return cache_dir("trees")


def recipe(packages: Sequence[str], drop: frozenset[str] = NOT_NEEDED) -> str:
    """Return a few digits that depend on a tree's packages."""
    return hashlib.sha256(" ".join([*packages, *sorted(drop)]).encode()).hexdigest()[:8]


def place(product: Product, package: str, suite: str) -> Path:
    """Return the path for a package version's tree, without a colon, which loaders misread."""
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
    """Return the tree in the cache for a choice, which is a version or a suite.

    A version means the newest match in the cache.  A suite's newest version is that of its lists
    when pyvmm last read them.
    """
    if choice not in SUITES:
        return next((t for t in cached(product) if matches(choice, t.version)), None)
    seen = look(choice)
    newest = seen.offers.get(product.name, ())[:1] if seen else ()
    wanted = [(choice, offer.package) for offer in newest]
    return next((t for t in cached(product) if (t.suite, t.package) in wanted), None)


def chosen(settings: HostSettings) -> list[Tree | None]:
    """Return the cached tree of each version or suite in the settings; a path has none.

    A tree that the cache lacks is None.
    """
    choices = ((LINUX, settings.kernel), (QEMU, settings.qemu))
    return [find(product, choice) for product, choice in choices if not is_path(choice)]


def look(suite: str) -> SuiteContents | None:
    """Return a suite's contents as pyvmm last read them, or None if it never did."""
    try:
        found = json.loads(_look_path(suite).read_text())
        offers = {
            name: tuple(Offer(*offer) for offer in pairs) for name, pairs in found["offers"].items()
        }
        return SuiteContents(suite, float(found["seen"]), offers, found["mirror"], found["gone"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(seen: SuiteContents) -> None:
    """Write a suite's contents to the cache, for commands that do not read the mirror."""
    document = {name: value for name, value in vars(seen).items() if name != "suite"}
    write_whole(_look_path(seen.suite), f"{json.dumps(document, indent=1)}\n".encode())


def old_looks(settings: HostSettings) -> list[SuiteContents]:
    """Return the contents of the settings' suites that pyvmm last read long ago."""
    looks = [look(choice) for choice in {settings.kernel, settings.qemu} if choice in SUITES]
    return [seen for seen in looks if seen is not None and seen.days > OLD_DAYS]


def upstream(package: str) -> str:
    """Return the upstream version of a Debian package: 7.2 of 1:7.2+dfsg-7+deb12u18."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", package)
    return match[1] if match else package


def order(package: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a key that sorts Debian versions by upstream version, then by revision."""
    version, rest = upstream(package), package.partition(upstream(package))[2]
    own = numbers(version) if version[:1].isdigit() else ()
    return own, tuple(map(int, re.findall(r"\d+", rest)))


def _look_path(suite: str) -> Path:
    return cache_dir("apt", suite) / "looked.json"


def _end(product: Product) -> str:
    """Return the end of a product's tree names: the recipe, if the product has one."""
    return f"-{recipe([QEMU_PACKAGE])}" if product.name == QEMU.name else ""


def _read(product: Product, path: Path, suite: str) -> Tree | None:
    """Return the tree at a path, or None if it does not list its packages."""
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
    except OSError:  # made by an older pyvmm
        version = upstream(package)
    return Tree(path, suite, package, version)
