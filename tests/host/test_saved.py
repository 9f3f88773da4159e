"""Saved hosts: their names, and the removal of old ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyvmm.base.dirs import runtime_dir, try_lock
from pyvmm.host import saved
from pyvmm.host.parts import payload, trees
from pyvmm.host.running import Running
from pyvmm.host.settings import LINUX, QEMU, HostSettings, Product
from tests.host.conftest import add_tree

DEFAULT = HostSettings()


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the fingerprint of pyvmm constant during a test."""
    monkeypatch.setattr(payload, "fingerprint", lambda: "as it is")


def save(name: str, age: int, settings: HostSettings = DEFAULT) -> Path:
    """Make a saved host with a time of last use."""
    path = saved.directory(name)
    path.mkdir()
    (path / "facts.json").write_text(json.dumps({"settings": vars(settings)}))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def names() -> list[str]:
    return sorted(path.name for path, _ in saved.everyone())


def other(number: int) -> HostSettings:
    return HostSettings(cpu=f"max,sve-max-vq={number}")


def test_key_is_stable() -> None:
    assert saved.key(DEFAULT) == saved.key(HostSettings())


def test_key_begins_with_kernel_and_qemu(tmp_path: Path) -> None:
    image = tmp_path / "my-kernel-image"
    image.touch()

    assert saved.key(HostSettings(kernel="6.12", qemu="10")).startswith("6.12-10-")
    assert saved.key(HostSettings(kernel=str(image))).startswith("my-kernel-im-7.2-")


@pytest.mark.parametrize("change", [{"kernel": "5.10"}, {"qemu": "10"}, {"cpu": "max"}])
def test_key_changes_with_the_settings(change: dict[str, str]) -> None:
    assert saved.key(DEFAULT.replace(**change)) != saved.key(DEFAULT)


@pytest.mark.parametrize(
    ("choice", "product", "older", "newer", "suite"),
    [
        ({"kernel": "7.2"}, LINUX, "7.2.12-1", "7.2.13-1", "sid"),
        ({"qemu": "11"}, QEMU, "1:11.1.2+ds-1", "1:11.1.3+ds-1", "sid"),
    ],
)
def test_key_changes_with_the_version_that_a_choice_means(
    choice: dict[str, str], product: Product, older: str, newer: str, suite: str
) -> None:
    settings = HostSettings(**choice)
    add_tree(product, older, suite)
    before = saved.key(settings)

    add_tree(product, newer, suite)

    assert saved.key(settings) != before
    assert saved.key(DEFAULT) == saved.key(HostSettings())


def test_key_changes_with_the_contents_of_a_suite() -> None:
    settings = HostSettings(kernel="sid")
    for package in ("7.2.13-1", "7.3.1-1"):
        add_tree(LINUX, package, "sid")
    remember_sid("7.2.13-1")
    before = saved.key(settings)

    remember_sid("7.3.1-1")

    assert saved.key(settings) != before


def remember_sid(package: str) -> None:
    offer = trees.Offer("linux-image-x-arm64", package)
    trees.remember(trees.SuiteContents("sid", 0.0, {"linux": (offer,)}))


def test_key_does_not_depend_on_the_kind_of_host() -> None:
    assert saved.key(HostSettings(kind="emulated")) == saved.key(DEFAULT)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("pyvmm.host.parts.payload.fingerprint", lambda: "changed"),
        ("pyvmm.host.saved.RECIPE", saved.RECIPE + 1),
        ("pyvmm.host.saved.memory_size", lambda: 1 << 30),
        ("os.cpu_count", lambda: 77),
        ("os.getuid", lambda: 12345),
    ],
    ids=["code", "recipe", "memory", "cpus", "user"],
)
def test_key_changes_with_the_parts_of_the_host(
    target: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.key(DEFAULT)

    monkeypatch.setattr(target, value)

    assert saved.key(DEFAULT) != before


def test_key_changes_with_the_cache(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.key(DEFAULT)

    monkeypatch.setenv("XDG_CACHE_HOME", str(own / "another"))

    assert saved.key(DEFAULT) != before


def test_key_changes_with_the_kernel_at_a_path(tmp_path: Path) -> None:
    image = tmp_path / "Image"
    image.write_bytes(b"one")
    before = saved.key(HostSettings(kernel=str(image)))

    image.write_bytes(b"another")

    assert saved.key(HostSettings(kernel=str(image))) != before


def test_memory_is_at_most_four_gib_and_half_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def machine(gib: int) -> None:
        sizes = {"SC_PHYS_PAGES": gib << 18, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)

    machine(64)
    assert saved.memory_size() == 4 << 30
    machine(3)
    assert saved.memory_size() == 3 << 29


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_facts_returns_none_for_a_damaged_file(text: str | None) -> None:
    path = save("6.1", 0)
    (path / "facts.json").unlink()
    if text is not None:
        (path / "facts.json").write_text(text)

    assert saved.facts(path) is None
    assert list(saved.everyone()) == [(path, {})]


def test_prune_keeps_a_few_hosts_of_the_same_settings() -> None:
    """Several checkouts of pyvmm can use the same cache."""
    for age in range(1, saved.KEEP_ALIKE + 2):
        save(f"old{age}", 50 * age)
    newest = save("new", 0)
    save("other", 1000, other(1))

    saved.prune(newest, DEFAULT)

    assert names() == ["new", *(f"old{age}" for age in range(1, saved.KEEP_ALIKE)), "other"]


def test_prune_keeps_the_most_recently_used() -> None:
    newest = save("new", 0)
    for number in range(1, 12):
        save(f"other{number:02}", 10 * number, other(number))

    saved.prune(newest, DEFAULT)

    assert len(names()) == saved.KEEP
    assert names() == ["new", *(f"other{n:02}" for n in range(1, saved.KEEP))]


def test_prune_keeps_a_host_that_another_command_is_about_to_start() -> None:
    newest = save("new", 0)
    for number in range(1, 12):
        save(f"other{number:02}", 10 * number)
    os.utime(saved.directory("other11"))
    os.utime(saved.directory("other10"))
    os.utime(saved.directory("other09"))

    saved.prune(newest, DEFAULT)

    assert names() == ["new", "other09", "other10", "other11"]


def test_prune_removes_damaged_hosts() -> None:
    newest = save("new", 0)
    damaged = save("damaged", 1000, other(1))
    (damaged / "facts.json").write_text("[]")
    for number in range(2, 11):
        save(f"other{number:02}", 10 * number, other(number))

    saved.prune(newest, DEFAULT)

    assert "damaged" not in names()


@pytest.mark.parametrize("busy", [0, 1])
def test_prune_ends_idle_hosts_of_older_code(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = save("new", 0)
    old = Running(runtime_dir() / "old", "id", 1, {"settings": vars(DEFAULT)})
    save("old", 50)
    alive = [old]
    monkeypatch.setattr(saved, "all_running", lambda: list(alive))
    monkeypatch.setattr(saved, "sessions", lambda running: busy)
    monkeypatch.setattr(saved, "stop", alive.remove)
    monkeypatch.setattr(
        saved, "running_at", lambda path: old if old in alive and path == old.path else None
    )

    saved.prune(newest, DEFAULT)

    assert bool(alive) == bool(busy)


def test_prune_keeps_running_hosts_of_other_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newest = save("new", 0)
    kept = Running(runtime_dir() / "kept", "id", 1, {"settings": vars(other(1))})
    stopped: list[Running] = []
    monkeypatch.setattr(saved, "all_running", lambda: [kept])
    monkeypatch.setattr(saved, "stop", stopped.append)

    saved.prune(newest, DEFAULT)

    assert stopped == []


def test_prune_removes_leftovers_of_killed_commands() -> None:
    newest = save("new", 0)
    hosts = newest.parent
    for leftover in (".gone1.gone-77", ".dead.tmp-abc", ".busy.tmp-abc"):
        (hosts / leftover).mkdir()
        (hosts / leftover / "memory").touch()
    lock = try_lock(hosts / ".busy.lock")  # another command is making that one
    assert lock is not None

    saved.prune(newest, DEFAULT)

    os.close(lock)
    assert sorted(p.name for p in hosts.iterdir() if p.is_dir()) == [".busy.tmp-abc", "new"]


def test_remove_succeeds_twice() -> None:
    path = save("6.1", 0)

    saved.remove(path)
    saved.remove(path)

    assert list(path.parent.iterdir()) == []
