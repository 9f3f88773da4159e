"""The Debian suite that has a version now, with fake suites."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host.parts import catalogue, trees
from pyvmm.host.parts.debian import Suite, SuiteMissingError
from pyvmm.host.parts.trees import Offer, Tree
from pyvmm.host.progress import Progress
from pyvmm.host.settings import LINUX, QEMU, SUITES, Product

QUIET = Progress(quiet=True)
MIRROR = "http://deb.example/debian"
OTHER = [
    ("linux-image-arm64", "9.9.9-1"),
    ("linux-image-9.9-cloud-arm64", "9.9.9-1"),
    ("linux-image-9.9-rt-arm64", "9.9.9-1"),
    ("linux-image-9.9-arm64-16k", "9.9.9-1"),
    ("linux-image-9.9-arm64-unsigned", "9.9.9-1"),
    ("linux-image-9.9-amd64", "9.9.9-1"),
]
TODAY: dict[str, list[tuple[str, str]]] = {
    "bullseye": [
        ("linux-image-5.10.0-32-arm64", "5.10.223-1"),
        ("qemu-system-arm", "1:5.2+dfsg-11+deb11u3"),
    ],
    "bookworm": [
        ("linux-image-6.1.0-47-arm64", "6.1.170-3"),
        ("linux-image-6.1.0-50-arm64", "6.1.176-1"),
        ("qemu-system-arm", "1:7.2+dfsg-7+deb12u18+b3"),
    ],
    "trixie": [("linux-image-6.12.117+deb13-arm64", "6.12.117-1")],
    "sid": [
        ("linux-image-7.2.13+deb14-arm64", "7.2.13-1"),
        ("qemu-system-arm", "1:11.1.3+ds-1"),
    ],
    "forky": [("linux-image-7.2.12+deb14-arm64", "7.2.12-1")],
    "trixie-backports": [
        ("linux-image-7.1.7+deb13-arm64", "7.1.7-1~bpo13+1"),
        ("linux-image-7.1.13+deb13-arm64", "7.1.13-1~bpo13+1"),
    ],
    "bookworm-backports": [("linux-image-6.12.95+deb12-arm64", "6.12.95-1~bpo12+1")],
}


class Mirror:
    """A fake Debian mirror: its suites, their contents, and the number of requests."""

    def __init__(self) -> None:
        self.suites = {name: list(packages) for name, packages in TODAY.items()}
        self.asked: list[str] = []
        self.lacking: dict[str, list[str]] = {}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """Return a mirror with every suite."""
    made = Mirror()

    class FakeSuite(Suite):
        def names(self, beginning: str) -> list[str]:
            made.asked.append(self.name)
            if self.name not in made.suites:
                raise SuiteMissingError(self.name, MIRROR)
            held = [*made.suites[self.name], *OTHER]
            return [name for name, _ in held if name.startswith(beginning)]

        def lacking(self, specs: Iterable[str]) -> dict[str, list[str]]:
            names = [spec.removesuffix(":arm64") for spec in specs]
            return {name: made.lacking.get(name, ["linux-base", "dracut"]) for name in names}

        def versions(self, specs: Iterable[str]) -> list[tuple[str, str]]:
            wanted = {spec.partition(":")[0] for spec in specs}
            return [p for p in [*made.suites[self.name], *OTHER] if p[0] in wanted]

    monkeypatch.setattr(catalogue, "Suite", FakeSuite)
    monkeypatch.setattr(catalogue, "machine_arch", lambda: "amd64")
    return made


def get(product: Product, choice: str, holds: str = "") -> Tree:
    """Get a tree whose program has the version ``holds``, by default the package's."""

    def unpack(suite: Suite, offer: Offer, into: Path) -> str:
        (into / trees.PACKAGES).write_text(f"{offer.name}:arm64={offer.package}\n")
        return holds or offer.version

    return catalogue.get(product, choice, unpack, QUIET)


@pytest.mark.parametrize(
    ("choice", "suite", "version"),
    [
        ("6.1", "bookworm", "6.1.176"),
        ("6.1.170", "bookworm", "6.1.170"),
        ("7.2", "sid", "7.2.13"),
        ("7.2.12", "forky", "7.2.12"),
        ("7.1", "trixie-backports", "7.1.13"),
        ("6.12.95", "bookworm-backports", "6.12.95"),
        ("sid", "sid", "7.2.13"),
        ("trixie-backports", "trixie-backports", "7.1.13"),
    ],
)
def test_get_unpacks_a_kernel_from_the_suite_that_has_it(
    choice: str, suite: str, version: str, mirror: Mirror
) -> None:
    found = get(LINUX, choice)

    assert (found.suite, found.version) == (suite, version)
    assert trees.find(LINUX, choice) == found


def test_get_uses_a_cached_tree_without_the_mirror(mirror: Mirror) -> None:
    first = get(LINUX, "7.2")
    suite = get(LINUX, "sid")
    mirror.asked.clear()
    mirror.suites.clear()

    assert get(LINUX, "7.2") == first == suite == get(LINUX, "sid")
    assert mirror.asked == []


def test_get_uses_a_cached_version_that_its_suite_no_longer_has(mirror: Mirror) -> None:
    before = get(LINUX, "7.2")
    mirror.suites["sid"] = [("linux-image-7.3.1+deb14-arm64", "7.3.1-1")]
    catalogue.look("sid")

    assert get(LINUX, "7.2") == before
    assert get(LINUX, "sid").version == "7.3.1"
    assert len(trees.cached(LINUX)) == 2


def test_get_names_the_current_versions_when_no_suite_has_the_requested_one(mirror: Mirror) -> None:
    for suite in ("sid", "forky"):
        mirror.suites[suite] = [("linux-image-7.3.1+deb14-arm64", "7.3.1-1")]

    with pytest.raises(HostError) as caught:
        get(LINUX, "7.2")

    assert caught.value.exit_code == 3
    assert caught.value.message == (
        "Debian sid holds Linux 7.3.1 today, forky 7.3.1, trixie-backports 7.1.13, "
        "bookworm-backports 6.12.95: not 7.2"
    )
    assert (caught.value.hint or "").startswith("`host.kernel`=7.3 or `host.kernel`=sid;")


def test_get_refuses_a_program_of_another_version_than_its_package(mirror: Mirror) -> None:
    with pytest.raises(HostError, match=r"^Debian bookworm holds QEMU 8\.0\.1 today: not 7\.2$"):
        get(QEMU, "7.2", holds="8.0.1")

    assert trees.cached(QEMU) == []


def test_get_refuses_a_suite_whose_program_differs_from_its_package(mirror: Mirror) -> None:
    with pytest.raises(HostError, match=r"holds Linux 6\.1\.176 today: not sid"):
        get(LINUX, "sid", holds="6.1.176")


def test_get_checks_a_full_version_against_the_program(mirror: Mirror) -> None:
    assert get(QEMU, "7.2.22", holds="7.2.22").version == "7.2.22"

    with pytest.raises(HostError, match=r"Debian bookworm holds QEMU 7\.2\.22 today: not 7\.2\.9"):
        get(QEMU, "7.2.9", holds="7.2.22")


def test_get_names_a_missing_suite_and_the_others(mirror: Mirror) -> None:
    del mirror.suites["bullseye"]

    for choice in ("5.10", "bullseye"):
        with pytest.raises(HostError) as caught:
            get(LINUX, choice)
        assert caught.value.message == (
            f"`host.kernel`={choice}: the Debian mirror {MIRROR} has no suite bullseye; "
            "there are 6.1 (bookworm), 6.12 (trixie), 7.2 (sid)"
        )
        assert "Debian's archive keeps old suites" in (caught.value.hint or "")

    seen = trees.look("bullseye")
    assert seen is not None
    assert seen.gone


def test_get_tries_other_suites_when_a_versions_suite_is_missing(mirror: Mirror) -> None:
    del mirror.suites["trixie"]

    assert get(LINUX, "6.12").suite == "bookworm-backports"


def test_get_reports_a_suite_without_such_a_package(mirror: Mirror) -> None:
    with pytest.raises(HostError, match=r"`host\.qemu`=forky: Debian has no QEMU of that name"):
        get(QEMU, "forky")


def test_look_returns_kernels_of_the_full_flavour_newest_first(mirror: Mirror) -> None:
    seen = catalogue.look("bookworm")

    assert [offer.name for offer in seen.offers["linux"]] == [
        "linux-image-6.1.0-50-arm64", "linux-image-6.1.0-47-arm64"
    ]  # fmt: skip
    assert [offer.package for offer in seen.offers["qemu"]] == ["1:7.2+dfsg-7+deb12u18+b3"]
    assert trees.look("bookworm") == seen


def test_look_omits_a_kernel_without_its_dependencies(mirror: Mirror) -> None:
    newest = "7.1.13+deb13-arm64"
    mirror.lacking[f"linux-image-{newest}"] = ["linux-base", f"linux-modules-{newest}"]

    assert get(LINUX, "7.1").version == "7.1.7"


def test_fake_mirror_has_every_suite_of_the_table() -> None:
    assert set(TODAY) == set(SUITES)
