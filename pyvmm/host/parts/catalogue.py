"""Kernels and QEMUs from Debian's suites: finding the suite that has a version, and unpacking it.

The unpacked version is checked against the request: a suite may have a newer package by now, and
the program in a package may report another version.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError
from pyvmm.host.parts import trees
from pyvmm.host.parts.debian import Suite, SuiteMissingError, machine_arch
from pyvmm.host.parts.trees import Offer, SuiteContents, Tree
from pyvmm.host.progress import Progress
from pyvmm.host.settings import LINUX, QEMU, SUITES, Product, matches, suites_for

# The full flavour: the cloud one lacks 9p, which the user's files need.
KERNELS: Final = re.compile(r"linux-image-\d[^-]*(-\d[^-]*)?-arm64")

# Unpacks an offer of a suite into a directory, and returns the version of its program.
Unpack = Callable[[Suite, Offer, Path], str]


def look(suite: str) -> SuiteContents:
    """Read a suite's package lists; fetch them again if they are older than ten minutes.

    Raises:
        SuiteMissingError: the mirror has no such suite; the cache remembers that too.
        HostError: the mirror cannot be reached.
    """
    source = Suite(suite)
    try:
        kernels = _kernels(source)
    except SuiteMissingError as error:
        trees.remember(SuiteContents(suite, time.time(), {}, error.mirror, gone=True))
        raise
    found = source.versions([*kernels, f"{trees.QEMU_PACKAGE}:{machine_arch()}"])
    offers = [Offer(*pair) for pair in found]
    offers.sort(key=lambda offer: trees.order(offer.package), reverse=True)
    of_qemu = tuple(offer for offer in offers if offer.name == trees.QEMU_PACKAGE)
    of_linux = tuple(offer for offer in offers if offer.name != trees.QEMU_PACKAGE)
    seen = SuiteContents(suite, time.time(), {LINUX.name: of_linux, QEMU.name: of_qemu})
    trees.remember(seen)
    return seen


def _kernels(source: Suite) -> list[str]:
    """Return the kernel packages of a suite that can be installed.

    For some older kernels the mirrors keep this package without its dependencies.
    """
    names = [name for name in source.names(trees.KERNEL_PACKAGE) if KERNELS.fullmatch(name)]
    lacking = source.lacking(f"{name}:arm64" for name in names)
    return [
        f"{name}:arm64"
        for name in names
        if not any(
            part.endswith(name.removeprefix(trees.KERNEL_PACKAGE)) for part in lacking.get(name, ())
        )
    ]


def get(product: Product, choice: str, unpack: Unpack, progress: Progress) -> Tree:
    """Return the tree of a version or a suite; unpack it if the cache lacks it.

    Raises:
        HostError: no suite has that version now, or the mirror cannot be reached.
    """
    found = trees.find(product, choice)
    if found is not None:
        return found
    suite, offer = _offer(product, choice, progress)
    path = trees.place(product, offer.package, suite)

    def build(into: Path) -> None:
        version = unpack(Suite(suite), offer, into)
        asked = offer.version if choice in SUITES else choice
        if not matches(asked, version):
            raise _moved_on(product, choice, [(suite, version)])
        (into / trees.VERSION_FILE).write_text(f"{version}\n")

    progress.cached(f"getting {product.title} {offer.version} from Debian {suite}", path, build)
    made = next((tree for tree in trees.cached(product) if tree.path == path), None)
    if made is None or not (choice in SUITES or matches(choice, made.version)):
        raise _moved_on(product, choice, [(suite, made.version if made else offer.version)])
    return made


def _offer(product: Product, choice: str, progress: Progress) -> tuple[str, Offer]:
    """Find a suite that has the chosen version now, and its newest matching package."""
    held: list[tuple[str, str]] = []
    missing: list[SuiteMissingError] = []
    for suite in [choice] if choice in SUITES else suites_for(product, choice):
        wanted = product.title if choice == suite else f"{product.title} {choice}"
        progress.say(f"looking for {wanted} in Debian {suite}")
        try:
            offers = look(suite).offers[product.name]
        except SuiteMissingError as error:
            missing.append(error)
            continue
        for offer in offers:
            # the program's version can be longer than the package's: 7.2.22 in 7.2+dfsg-7
            if choice == suite or matches(choice, offer.version) or matches(offer.version, choice):
                return suite, offer
        held += [(suite, offer.version) for offer in offers[:1]]
    if held:
        raise _moved_on(product, choice, held)
    raise _missing(product, choice, missing)


def _moved_on(product: Product, choice: str, held: list[tuple[str, str]]) -> HostError:
    """Return the error for a version that no suite has now."""
    (suite, version), *others = held
    more = "".join(f", {name} {other}" for name, other in others)
    series = ".".join(version.split(".")[:2])
    return HostError(
        f"Debian {suite} holds {product.title} {version} today{more}: not {choice}",
        hint=f"`{product.field}`={series} or `{product.field}`={suite}; "
        f"`pyvmm host list` shows what there is",
    )


def _missing(product: Product, choice: str, missing: list[SuiteMissingError]) -> HostError:
    """Return the error for suites that the mirror lacks, or that have no such package."""
    if not missing:
        return HostError(
            f"`{product.field}`={choice}: Debian has no {product.title} of that name today",
            hint="`pyvmm host list` shows what there is",
        )
    gone = {error.suite for error in missing}
    rest = ", ".join(f"{version} ({suite})" for version, suite in product.suites.items()
                     if suite not in gone)  # fmt: skip
    return HostError(
        f"`{product.field}`={choice}: {missing[0].message}; there are {rest}", hint=missing[0].hint
    )
