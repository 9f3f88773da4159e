"""``pyvmm host list``: what each suite has, and what is in the cache, without a mirror."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pyvmm.commands.host import _list, host
from pyvmm.errors import HostError
from pyvmm.host import saved
from pyvmm.host.parts import catalogue, trees
from pyvmm.host.parts.debian import SuiteMissingError
from pyvmm.host.parts.trees import Offer, SuiteContents
from pyvmm.host.progress import Progress
from pyvmm.host.settings import LINUX, QEMU, SUITES
from tests.host.conftest import add_tree

DAY = 86400


@pytest.fixture(autouse=True)
def own_directories(own: Path) -> None:
    """Give every test its own cache."""


def seen(suite: str, *kernels: str, gone: bool = False, age: float = 0) -> SuiteContents:
    """Record what a suite had that many seconds ago."""
    offers = {
        "linux": tuple(Offer("linux-image-x-arm64", package) for package in kernels),
        "qemu": (Offer("qemu-system-arm", "1:11.1.3+ds-1"),),
    }
    return SuiteContents(suite, time.time() - age, {} if gone else offers, "http://m.example", gone)


def listed(*options: str) -> dict[str, Any]:
    """Return the JSON document's kernels and QEMUs, by suite."""
    done = CliRunner().invoke(host, ["list", "--json", *options])
    document = json.loads(done.stdout)
    for kind in ("kernels", "qemus"):
        document[kind] = {row["suite"]: row for row in document[kind]}
    return dict(document)


def text(*options: str) -> list[str]:
    return CliRunner().invoke(host, ["list", *options]).stdout.splitlines()


def test_list_with_a_new_cache_has_every_suite_with_its_expected_version() -> None:
    document = listed()

    assert document["schema"] == 1
    assert tuple(document["kernels"]) == tuple(document["qemus"]) == SUITES
    assert document["kernels"]["sid"] == {
        "choose": ["7.2", "sid"], "suite": "sid", "has": None, "gone": False, "looked_at": None,
        "cached": [],
    }  # fmt: skip
    assert document["qemus"]["bookworm"]["choose"] == ["7.2", "bookworm"]


def test_list_has_the_ready_made_hosts_with_their_settings() -> None:
    (nested,) = [model for model in listed()["models"] if model["name"] == "nested"]

    assert nested == {
        "name": "nested", "kernel": "7.2", "qemu": "11", "cpu": "max,sve2048=on,lpa2=off",
        "machine": "",
        "append": "kvm-arm.mode=nested", "about": "guests at EL2",
    }  # fmt: skip
    (line,) = [line for line in text() if line.startswith("gicv2 ")]
    assert line.split()[:5] == ["gicv2", "6.1", "7.2", "gic-version=2", "max,sve2048=on"]


def test_suite_that_moved_on_offers_its_current_version() -> None:
    trees.remember(seen("sid", "7.3.1-1"))
    trees.remember(seen("trixie-backports", "7.1.13-1", "7.1.7-1", "6.18.2-1"))

    kernels = listed()["kernels"]

    assert kernels["sid"]["choose"] == ["7.3", "sid"]
    assert kernels["sid"]["has"] == ["7.3.1"]
    assert kernels["trixie-backports"]["choose"] == ["7.1", "6.18", "trixie-backports"]


def test_expected_version_comes_first() -> None:
    trees.remember(seen("sid", "7.2.13-1"))

    document = listed()

    assert document["kernels"]["sid"]["choose"] == ["7.2", "sid"]
    assert document["qemus"]["sid"]["choose"] == ["11", "sid"]


def test_suite_that_left_the_mirror_offers_nothing() -> None:
    trees.remember(seen("bullseye", gone=True))

    row = listed()["kernels"]["bullseye"]

    assert (row["choose"], row["gone"], row["has"]) == ([], True, [])
    assert any("bullseye" in line and "not on the mirror" in line for line in text())


def test_cached_trees_are_shown_with_their_saved_hosts() -> None:
    path = add_tree(LINUX, "6.1.176-1", "bookworm")
    add_tree(QEMU, "1:7.2+dfsg-7", "bookworm", version="7.2.22")
    (path / "file").write_bytes(b"x" * 300_000)
    made = saved.directory("6.1-7.2-0123456789")
    made.mkdir()
    (made / "facts.json").write_text(json.dumps({"trees": [path.name]}))

    (tree,) = listed()["kernels"]["bookworm"]["cached"]
    (qemu,) = listed()["qemus"]["bookworm"]["cached"]

    assert (tree["version"], tree["package"], tree["path"]) == ("6.1.176", "6.1.176-1", str(path))
    assert 300_000 <= tree["bytes"] < 400_000
    assert tree["hosts"] == ["6.1-7.2-0123456789"]
    assert (qemu["version"], qemu["hosts"]) == ("7.2.22", [])
    (line,) = (line for line in text() if "6.1.176" in line)
    assert line.split()[-1] == "6.1-7.2-0123456789"


def test_suite_with_two_cached_trees_has_two_lines() -> None:
    for package in ("7.2.13-1", "7.3.1-1"):
        add_tree(LINUX, package, "sid")
    trees.remember(seen("sid", "7.3.1-1", age=3 * DAY))

    lines = text()

    first = next(number for number, line in enumerate(lines) if " sid " in line)
    assert lines[first].split()[:6] == ["7.3", "sid", "7.3.1", "3", "days", "ago"]
    assert "7.3.1, 0 MB" in lines[first]
    assert lines[first + 1].split() == ["7.2.13,", "0", "MB", "-"]


@pytest.mark.parametrize(
    ("age", "words"),
    [(5, "just now"), (600, "10 minutes ago"), (7300, "2 hours ago"), (40 * DAY, "40 days ago")],
)
def test_age_is_shown_in_days_hours_or_minutes(age: float, words: str) -> None:
    trees.remember(seen("sid", "7.2.13-1", age=age))

    assert any(words in line for line in text())


def test_refresh_reads_every_suite_and_accepts_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(suite: str) -> SuiteContents:
        if suite == "bullseye":
            raise SuiteMissingError(suite, "http://m.example")
        trees.remember(seen(suite, "7.2.13-1"))
        return seen(suite, "7.2.13-1")

    monkeypatch.setattr(catalogue, "look", look)

    assert _list.refresh(Progress())

    said = capsys.readouterr().err
    assert "Debian sid: Linux 7.2.13, QEMU 11.1.3" in said
    assert "the Debian mirror http://m.example has no suite bullseye" in said
    assert all(trees.look(suite) for suite in SUITES if suite != "bullseye")


def test_refresh_without_a_mirror_shows_known_versions_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(suite: str) -> SuiteContents:
        raise HostError("Could not resolve 'm.example'")

    trees.remember(seen("sid", "7.2.13-1"))
    monkeypatch.setattr(catalogue, "look", look)

    done = CliRunner().invoke(host, ["list", "--refresh"], standalone_mode=False)

    assert done.return_value == 3
    assert "Debian sid: Could not resolve 'm.example'" in done.stderr
    assert "7.2.13" in done.stdout
