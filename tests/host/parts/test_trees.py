"""The kernel or QEMU in the cache for a choice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyvmm.host.parts import trees
from pyvmm.host.parts.trees import Offer, SuiteContents
from pyvmm.host.settings import LINUX, QEMU, HostSettings
from tests.host.conftest import add_tree

DAY = 86400


def remember(suite: str, *packages: str, age_days: float = 0, gone: bool = False) -> None:
    """Remember a look at a suite, some days ago."""
    offers = {"linux": tuple(Offer("linux-image-x-arm64", package) for package in packages)}
    trees.remember(
        SuiteContents(suite, time.time() - age_days * DAY, offers, "http://m.example", gone)
    )


def test_find_returns_the_newest_cached_match_for_a_version() -> None:
    for package in ("6.1.99-1", "6.1.176-1", "6.12.9-1"):
        add_tree(LINUX, package, "bookworm")

    def version(choice: str) -> str | None:
        found = trees.find(LINUX, choice)
        return found.version if found is not None else None

    assert version("6.1") == "6.1.176"
    assert version("6.1.99") == "6.1.99"
    assert version("6") == "6.12.9"
    assert version("6.2") is None


def test_find_returns_a_cached_version_that_its_suite_no_longer_has() -> None:
    path = add_tree(LINUX, "7.2.13-1", "sid")
    remember("sid", "7.3.1-1")

    found = trees.find(LINUX, "7.2")

    assert found is not None
    assert (found.path, found.suite) == (path, "sid")
    assert trees.find(LINUX, "sid") is None


def test_find_returns_a_suites_version_at_the_last_look() -> None:
    for package in ("7.2.13-1", "7.3.1-1"):
        add_tree(LINUX, package, "sid")
    add_tree(LINUX, "7.3.1-1", "forky")
    assert trees.find(LINUX, "sid") is None

    remember("sid", "7.3.1-1", "7.2.13-1")

    found = trees.find(LINUX, "sid")
    assert found is not None
    assert (found.suite, found.package) == ("sid", "7.3.1-1")


def test_find_returns_none_for_a_suite_that_left_the_mirror() -> None:
    add_tree(LINUX, "5.10.1-1", "bullseye")
    remember("bullseye", gone=True)

    assert trees.find(LINUX, "bullseye") is None
    assert trees.find(LINUX, "5.10") is not None


def test_tree_can_have_a_longer_version_than_its_package() -> None:
    add_tree(QEMU, "1:7.2+dfsg-7+deb12u18", "bookworm", version="7.2.22")

    (found,) = trees.cached(QEMU)

    assert (found.version, found.package) == ("7.2.22", "1:7.2+dfsg-7+deb12u18")
    assert ":" not in str(found.path)
    assert trees.find(QEMU, "7.2.22") == found == trees.find(QEMU, "7.2")


def test_tree_of_an_older_pyvmm_has_its_packages_version() -> None:
    path = trees.trees_dir() / "linux-7.2-sid"
    path.mkdir()
    (path / trees.PACKAGES).write_text("linux-image-7.3.1+deb14-arm64:arm64=7.3.1-1\n")

    assert trees.find(LINUX, "7.2") is None
    assert [tree.version for tree in trees.cached(LINUX)] == ["7.3.1"]


@pytest.mark.parametrize("name", ["linux-headers-6.1-bookworm", "linux-6.1-woody", "linux-6.1-sid"])
def test_cached_ignores_other_directories(name: str) -> None:
    (trees.trees_dir() / name).mkdir()

    assert trees.cached(LINUX) == []


def test_cached_ignores_trees_of_another_recipe() -> None:
    path = add_tree(QEMU, "1:7.2+dfsg-7", "bookworm")
    path.rename(path.with_name("qemu-7.2+dfsg-7-bookworm-00000000"))

    assert trees.cached(QEMU) == []


def test_look_returns_the_remembered_look() -> None:
    assert trees.look("sid") is None
    remember("sid", "7.3.1-1", "7.2.13-1", age_days=3)

    seen = trees.look("sid")

    assert seen is not None
    assert [offer.version for offer in seen.offers["linux"]] == ["7.3.1", "7.2.13"]
    assert 2.9 < seen.days < 3.1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seen": 1, "offers": []}'])
def test_look_returns_none_for_a_damaged_file(text: str) -> None:
    remember("sid", "7.3.1-1")
    path: Path = trees._look_path("sid")
    path.write_text(text)

    assert trees.look("sid") is None


def test_old_looks_returns_old_looks_at_chosen_suites() -> None:
    remember("sid", "7.3.1-1", age_days=33)
    remember("forky", "7.2.12-1", age_days=1)

    assert trees.old_looks(HostSettings(kernel="7.2")) == []
    assert trees.old_looks(HostSettings(kernel="forky")) == []
    (seen,) = trees.old_looks(HostSettings(kernel="sid", qemu="sid"))
    assert (seen.suite, round(seen.days)) == ("sid", 33)


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("6.1.176-1", "6.1.176"),
        ("1:7.2+dfsg-7+deb12u18+b3", "7.2"),
        ("1:10.0.13+ds-0+deb13u1", "10.0.13"),
        ("7.3.4-1~bpo13+1", "7.3.4"),
        ("7.3~rc7-1~exp1", "7.3"),
    ],
)
def test_upstream_returns_the_upstream_version(package: str, version: str) -> None:
    assert trees.upstream(package) == version


def test_order_sorts_debian_versions_by_number() -> None:
    packages = ["6.1.99-1", "6.1.170-3", "6.1.170-12", "6.12.9-1", "7.2.13-1"]

    keys = [trees.order(package) for package in packages]
    assert keys == sorted(keys)
