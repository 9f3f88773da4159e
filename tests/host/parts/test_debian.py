"""The private apt, with fake programs in place of apt and dpkg."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from pyvmm.base.dirs import cache_dir
from pyvmm.errors import HostError
from pyvmm.host.parts import debian
from pyvmm.host.parts.debian import Package, Suite, SuiteMissingError, mirror
from pyvmm.host.parts.trees import PACKAGES
from pyvmm.host.progress import Progress

QUIET = Progress(quiet=True)
URIS = """\
Reading package lists...
Building dependency tree...
The following NEW packages will be installed:
  gcc-12-base libc6
'http://deb.example/debian/pool/main/g/g.deb' gcc-12-base_12.2.0-14_arm64.deb 37544 SHA256:aa
'http://deb.example/debian/pool/main/p/perl.deb' libfoo++1_1%3a5.36+dfsg-7~deb12u1_amd64.deb 12 X:1
'http://deb.example/debian/pool/main/t/tz.deb' tzdata_2024a_all.deb 250 SHA256:bb
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a PATH with the programs of a test, and those that a shell needs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("sh", "cat", "touch", "basename"):
        found = next(p for d in ("/bin", "/usr/bin") if (p := Path(d) / name).exists())
        (directory / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "keyring.gpg")
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    (tmp_path / "keyring.gpg").touch()
    program(directory, "dpkg", "echo amd64")
    program(directory, "apt-cache", "")
    program(directory, "dpkg-deb", 'touch "$3/unpacked-$(basename "$2")"')
    program(directory, "apt-get", "echo http://deb.example/debian/")
    return directory


def program(directory: Path, name: str, script: str) -> None:
    """Write a program."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def apt(directory: Path, tmp_path: Path, **verbs: str) -> Path:
    """Write an apt-get with a script for each verb; return the log of its command lines."""
    log = tmp_path / "apt.log"
    cases = "\n".join(f'*" {verb} "*) {script} ;;' for verb, script in verbs.items())
    program(directory, "apt-get", f'echo "$*" >>{log}\ncase " $* " in\n{cases}\nesac')
    return log


INDEX = "echo http://deb.example/debian"


def test_spec_is_an_argument_of_apt() -> None:
    assert Package("libc6", "arm64", "2.36-9", 1).spec == "libc6:arm64=2.36-9"


@pytest.mark.usefixtures("programs")
def test_parse_uri_returns_packages_and_ignores_other_lines() -> None:
    packages = [p for line in URIS.splitlines() if (p := debian._parse_uri(line, "amd64"))]

    assert packages == [
        Package("gcc-12-base", "arm64", "12.2.0-14", 37544),
        Package("libfoo++1", "amd64", "1:5.36+dfsg-7~deb12u1", 12),
        Package("tzdata", "amd64", "2024a", 250),  # for all: this machine's will do
    ]


def test_mirror_is_the_first_debian_one_of_this_machine(programs: Path) -> None:
    sites = "http://apt.example/tools http://security.example/debian-security http://a.example"
    program(programs, "apt-get", f"echo {sites}; echo https://b.example/mirrors/debian/")

    assert mirror() == "https://b.example/mirrors/debian/"


def test_mirror_reports_that_apt_has_none(programs: Path) -> None:
    program(programs, "apt-get", "echo http://archive.example/ubuntu")

    with pytest.raises(HostError) as caught:
        mirror()

    assert caught.value.message == "this machine's apt names no Debian mirror"
    assert debian.MIRROR_VARIABLE in (caught.value.hint or "")


@pytest.mark.usefixtures("programs")
def test_mirror_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://mine.example/debian")

    assert mirror() == "http://mine.example/debian"


@pytest.mark.parametrize("missing", ["apt-get", "apt-cache", "dpkg", "dpkg-deb"])
def test_require_tools_names_the_missing_tools(missing: str, programs: Path) -> None:
    (programs / missing).unlink()

    with pytest.raises(HostError) as caught:
        Suite("bookworm").closure(["qemu-system-arm"])

    assert f"{missing} is missing" in caught.value.message
    assert "install apt dpkg debian-archive-keyring" in (caught.value.hint or "")


FEDORA = "sudo dnf install apt dpkg debian-keyring"
EXPORT = "export PYVMM_DEBIAN_MIRROR=URL, with the URL of a Debian mirror"


@pytest.mark.parametrize(
    ("system", "lacking", "site", "hint"),
    [
        ({"ID": "debian"}, "keyring.gpg", "debian", "sudo apt-get install debian-archive-keyring"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "keyring.gpg", "ubuntu",
         f"sudo apt-get install debian-archive-keyring, then {EXPORT}"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "keyring.gpg", "mint",
         f"sudo apt-get install debian-archive-keyring, then {EXPORT}"),
        ({"ID": "fedora"}, "bin/apt-get", "", f"{FEDORA}, then {EXPORT}"),
        ({"ID": "fedora"}, "keyring.gpg", "debian", "sudo dnf install debian-keyring"),
        ({"ID": "arch"}, "bin/dpkg", "debian", "install apt dpkg debian-archive-keyring"),
        ({}, "keyring.gpg", "debian", "install debian-archive-keyring"),
    ],
)  # fmt: skip
def test_hint_is_the_distributions_own_command(
    system: dict[str, str],
    lacking: str,
    site: str,
    hint: str,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def freedesktop_os_release() -> dict[str, str]:
        if not system:
            raise OSError("no os-release")
        return system

    monkeypatch.setattr(platform, "freedesktop_os_release", freedesktop_os_release)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(programs, "apt-get", f"echo http://site.example/{site}")
    (programs.parent / lacking).unlink()

    with pytest.raises(HostError) as caught:
        debian.require_tools()

    assert caught.value.hint == hint


@pytest.mark.usefixtures("programs")
def test_hint_has_no_sudo_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "keyring.gpg").unlink()

    with pytest.raises(HostError) as caught:
        debian.require_tools()

    assert caught.value.hint == "apt-get install debian-archive-keyring"


def test_closure_runs_apt_for_an_empty_system_of_the_suite(programs: Path, tmp_path: Path) -> None:
    uris = tmp_path / "uris"
    uris.write_text(URIS)
    log = apt(programs, tmp_path, indextargets=INDEX, install=f"cat {uris}")
    suite = Suite("trixie")

    packages = suite.closure(["qemu-system-arm"])

    assert [p.name for p in packages] == ["gcc-12-base", "libfoo++1", "tzdata"]
    assert "APT::Install-Recommends=false --print-uris qemu-system-arm" in log.read_text()
    assert (suite.path / "status").read_text() == ""
    assert (suite.path / "sources.list").read_text() == (
        f"deb [signed-by={tmp_path}/keyring.gpg] http://deb.example/debian trixie main\n"
    )
    assert f'Dir::State "{suite.path}/state";' in (suite.path / "apt.conf").read_text()


def test_suite_with_an_architecture_has_no_other(programs: Path, tmp_path: Path) -> None:
    uris = tmp_path / "uris"
    uris.write_text(URIS)
    apt(programs, tmp_path, indextargets=INDEX, install=f"cat {uris}")
    suite = Suite("trixie", "arm64")

    packages = suite.closure(["python3"])

    assert packages[-1] == Package("tzdata", "arm64", "2024a", 250)
    assert 'APT::Architectures { "arm64"; };' in (suite.path / "apt.conf").read_text()
    assert suite.path != Suite("trixie").path


def test_lists_are_fetched_once_for_several_packages(programs: Path, tmp_path: Path) -> None:
    log = apt(programs, tmp_path, indextargets=INDEX)

    for _ in range(2):
        Suite("trixie").closure(["qemu-system-arm"])

    assert log.read_text().count("update") == 1


def test_lists_are_fetched_again_from_another_mirror(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = apt(programs, tmp_path, indextargets=INDEX)
    Suite("trixie").closure(["qemu-system-arm"])
    stamp = Suite("trixie").path / "updated"
    os.utime(stamp, (stamp.stat().st_mtime - 5, stamp.stat().st_mtime - 5))

    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://other.example/debian")
    Suite("trixie").closure(["qemu-system-arm"])

    assert log.read_text().count("update") == 2


def test_update_reports_apts_error(programs: Path, tmp_path: Path) -> None:
    said = "echo 'W: hashes' >&2; echo 'E: Could not resolve deb.example' >&2; exit 100"
    apt(programs, tmp_path, indextargets=INDEX, update=said)

    with pytest.raises(HostError) as caught:
        Suite("trixie").closure(["qemu-system-arm"])

    log = cache_dir() / "logs/apt-get.log"
    said = "apt-get -q update ...: Could not resolve deb.example"
    assert caught.value.message == f"{said}\n  log: {log}"
    assert log.read_text() == "W: hashes\nE: Could not resolve deb.example\n"
    assert "apt-get update" in (caught.value.hint or "")


def test_full_disk_has_its_own_hint(programs: Path, tmp_path: Path) -> None:
    said = "echo 'E: Write error - write (28: No space left on device)' >&2; exit 100"
    apt(programs, tmp_path, indextargets=INDEX, update=said)

    with pytest.raises(HostError) as caught:
        Suite("trixie").closure(["qemu-system-arm"])

    assert "free space" in (caught.value.hint or "")


def test_lists_are_fetched_again_after_a_failure(programs: Path, tmp_path: Path) -> None:
    apt(programs, tmp_path, indextargets=INDEX, update="exit 100")
    with pytest.raises(HostError, match="no reason given"):
        Suite("trixie").closure(["qemu-system-arm"])

    log = apt(programs, tmp_path, indextargets=INDEX)
    Suite("trixie").closure(["qemu-system-arm"])

    assert log.read_text().count("update") == 2


MADISON = """\
linux-image-6.1.0-47-arm64:arm64 |  6.1.170-3 | http://d.example bookworm/main arm64 Packages
 qemu-system-arm | 1:10.0.2+ds-1~bpo12+1 | http://d.example bookworm-backports/main amd64 Packages
     qemu |      1:7.2-1 | http://d.example bookworm/main Sources
"""


@pytest.mark.parametrize(
    ("suite", "found"),
    [
        ("bookworm", [("linux-image-6.1.0-47-arm64", "6.1.170-3")]),
        ("bookworm-backports", [("qemu-system-arm", "1:10.0.2+ds-1~bpo12+1")]),
    ],
)
def test_versions_returns_those_of_the_suite_itself(
    suite: str, found: list[tuple[str, str]], programs: Path, tmp_path: Path
) -> None:
    apt(programs, tmp_path, indextargets=INDEX)
    (tmp_path / "madison").write_text(MADISON)
    program(programs, "apt-cache", f'echo "$*" >{tmp_path}/asked; cat {tmp_path}/madison')

    assert Suite(suite).versions(["linux-image-6.1.0-47-arm64:arm64", "qemu-system-arm"]) == found

    asked = (tmp_path / "asked").read_text()
    assert asked == "-q madison linux-image-6.1.0-47-arm64:arm64 qemu-system-arm\n"


def test_versions_returns_nothing_for_no_packages(programs: Path, tmp_path: Path) -> None:
    apt(programs, tmp_path, indextargets=INDEX)
    program(programs, "apt-cache", "exit 1")

    assert Suite("bookworm").versions([]) == []


def test_names_returns_the_names_with_a_prefix(programs: Path, tmp_path: Path) -> None:
    apt(programs, tmp_path, indextargets=INDEX)
    program(programs, "apt-cache", 'echo "$3"one; echo "$3"two')

    assert Suite("bookworm").names("linux-") == ["linux-one", "linux-two"]


DEPENDS = """\
linux-image-7.1-arm64:arm64
  PreDepends: <linux-base:arm64>
    linux-base
 |Depends: <dracut:arm64>
  Depends: linux-binary-7.1-arm64:arm64
  Depends: <linux-modules-7.1-arm64:arm64>
linux-image-7.3-arm64:arm64
  Depends: linux-modules-7.3-arm64:arm64
"""


def test_lacking_returns_dependencies_without_a_package(programs: Path, tmp_path: Path) -> None:
    apt(programs, tmp_path, indextargets=INDEX)
    (tmp_path / "depends").write_text(DEPENDS)
    program(programs, "apt-cache", f'echo "$*" >{tmp_path}/asked; cat {tmp_path}/depends')

    assert Suite("sid").lacking(["a", "b"]) == {
        "linux-image-7.1-arm64": ["linux-base", "dracut", "linux-modules-7.1-arm64"],
        "linux-image-7.3-arm64": [],
    }
    assert (tmp_path / "asked").read_text() == "-q depends --important a b\n"


def test_backports_include_their_release(programs: Path, tmp_path: Path) -> None:
    apt(programs, tmp_path, indextargets=INDEX)
    suite = Suite("trixie-backports")

    suite.names("linux-")

    sources = (suite.path / "sources.list").read_text().splitlines()
    assert [line.split()[-2] for line in sources] == ["trixie", "trixie-backports"]
    assert 'APT::Default-Release "trixie-backports";' in (suite.path / "apt.conf").read_text()


def test_missing_suite_is_named(programs: Path, tmp_path: Path) -> None:
    """The error is apt's for a mirror that answers with 404."""
    said = tmp_path / "said"
    said.write_text(
        "W: The repository 'http://d.example buster Release' is odd\n"
        "E: The repository 'http://d.example buster Release' does not have a Release file.\n"
        "W: one\nE: two\nE: three\nE: four\n"
    )
    apt(programs, tmp_path, indextargets=INDEX, update=f"cat {said} >&2; exit 100")

    with pytest.raises(SuiteMissingError) as caught:
        Suite("buster").names("linux-")

    message = "the Debian mirror http://deb.example/debian has no suite buster"
    assert caught.value.message == message
    assert "Debian's archive keeps old suites" in (caught.value.hint or "")


def test_packages_are_downloaded_unpacked_and_not_kept(programs: Path, tmp_path: Path) -> None:
    log = apt(programs, tmp_path, indextargets=INDEX, download="touch a.deb b.deb")
    into = tmp_path / "tree"

    Suite("trixie").unpack(
        [Package("a", "arm64", "1", 5), Package("b", "all", "2", 5)], into, QUIET
    )

    assert "download a:arm64=1 b:all=2" in log.read_text()
    assert sorted(p.name for p in into.iterdir()) == [PACKAGES, "unpacked-a.deb", "unpacked-b.deb"]
    assert (into / PACKAGES).read_text() == "a:arm64=1\nb:all=2\n"
