"""The tables of ``pyvmm host list``: kernels and QEMUs in Debian and the cache, and models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any, Final

from pyvmm.base.dirs import size_on_disk
from pyvmm.commands._fields import option, spell
from pyvmm.commands._output import aligned
from pyvmm.errors import HostError
from pyvmm.host.models import MODELS
from pyvmm.host.parts import trees
from pyvmm.host.parts.trees import SuiteContents, Tree
from pyvmm.host.progress import Progress
from pyvmm.host.saved import everyone
from pyvmm.host.settings import LINUX, QEMU, SUITES, Product, matches

COLUMNS: Final = ("DEBIAN SUITE", "NEWEST", "LOOKED AT", "IN THE CACHE", "SAVED HOSTS")
MODEL_COLUMNS: Final = ("kernel", "qemu", "machine", "cpu", "append", "about")
AT_A_TIME: Final = 4  # suites that are read in parallel


def refresh(progress: Progress) -> bool:
    """Read every suite's package lists; return whether all could be read."""
    from pyvmm.host.parts import catalogue
    from pyvmm.host.parts.debian import SuiteMissingError

    answered = True
    progress.say(f"reading the package lists of {', '.join(SUITES)} ...")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        looks = {pool.submit(catalogue.look, suite): suite for suite in SUITES}
        for done in as_completed(looks):
            try:
                seen = done.result()
                held = [f"{product.title} {offers[0].version}" for product in (LINUX, QEMU)
                        if (offers := seen.offers[product.name])]  # fmt: skip
                progress.say(f"Debian {seen.suite}: {', '.join(held)}")
            except SuiteMissingError as error:
                progress.say(spell(error.message))
            except HostError as error:
                answered = False
                progress.say(f"Debian {looks[done]}: {spell(error.message)}")
    return answered


def rows(product: Product) -> list[dict[str, Any]]:
    """Return each suite's versions of a product, for ``host list --json``."""
    used = _uses()
    cached = trees.cached(product)
    return [
        _row(product, suite, [tree for tree in cached if tree.suite == suite], used)
        for suite in SUITES
    ]


def lines(product: Product, table: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows of a product as text."""
    title = (option(product.field), *COLUMNS)
    return aligned([title, *(line for row in table for line in _cells(row))])


def models() -> list[dict[str, str]]:
    """Return the ready-made hosts, for ``host list --json``."""
    return [
        {"name": name, **model.settings(), "about": model.about} for name, model in MODELS.items()
    ]


def model_lines(table: list[dict[str, str]]) -> Iterator[str]:
    """Yield the rows of the ready-made hosts as text."""
    title = (option("host.model"), *(field.upper() for field in MODEL_COLUMNS))
    return aligned(
        [title, *((row["name"], *(row[field] or "-" for field in MODEL_COLUMNS)) for row in table)]
    )


def _row(
    product: Product, suite: str, cached: list[Tree], used: dict[str, list[str]]
) -> dict[str, Any]:
    seen = trees.look(suite)
    offers = seen.offers.get(product.name, ()) if seen else ()
    has = list(dict.fromkeys(offer.version for offer in offers))
    return {
        "choose": _choose(product, suite, has, seen),
        "suite": suite,
        "has": has if seen else None,
        "gone": seen.gone if seen else False,
        "looked_at": datetime.fromtimestamp(seen.seen, UTC).isoformat("T", "seconds")
        if seen
        else None,
        "cached": [
            {
                "version": tree.version,
                "package": tree.package,
                "path": str(tree.path),
                "bytes": size_on_disk(tree.path),
                "hosts": used.get(tree.path.name, []),
            }
            for tree in cached
        ],
    }


def _choose(product: Product, suite: str, has: list[str], seen: SuiteContents | None) -> list[str]:
    """Return values for --host-kernel or --host-qemu: the suite's series, then its name."""
    expected = [version for version, known in product.suites.items() if known == suite]
    if seen is None:
        return [*expected, suite]
    if not has:
        return []
    named = [version for version in expected if any(matches(version, v) for v in has)]
    other = [v for v in has if not any(matches(version, v) for version in named)]
    series = [".".join(version.split(".")[:2]) for version in other]
    return [*dict.fromkeys([*named, *series]), suite]


def _cells(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a row: one for each tree in the cache, at least one."""
    versions = ", ".join(row["choose"][:-1])
    first = (versions, row["suite"], _newest(row), _age(row["looked_at"]))
    trees_of = [
        (f"{tree['version']}, {tree['bytes'] / 1e6:.0f} MB", ", ".join(tree["hosts"]) or "-")
        for tree in row["cached"]
    ]
    for number, tree in enumerate(trees_of or [("-", "-")]):
        yield (*(first if number == 0 else ("",) * len(first)), *tree)


def _newest(row: dict[str, Any]) -> str:
    if row["gone"]:
        return "not on the mirror"
    if row["has"] is None:
        return "not known yet"
    return row["has"][0] if row["has"] else "none"


def _age(looked_at: str | None) -> str:
    """Return a time in the past as text: 3 days ago."""
    if looked_at is None:
        return "never"
    seconds = max(0.0, time.time() - datetime.fromisoformat(looked_at).timestamp())
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return "just now"


def _uses() -> dict[str, list[str]]:
    """Return the saved hosts that were made with each tree."""
    found: dict[str, list[str]] = {}
    for path, facts in everyone():
        for name in facts.get("trees") or ():
            found.setdefault(str(name), []).append(path.name)
    return found
