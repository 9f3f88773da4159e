"""Debian packages without being root and without touching the system: a private apt per suite.

The mirror and every other setting (proxies, certificates) come from the machine's own apt
configuration; lists and downloads are kept in pyvmm's cache; nothing is ever installed.
Packages are verified by apt against the Debian archive keyring.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyvmm.dirs import cache_dir, locked
from pyvmm.errors import HostError
from pyvmm.host.progress import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_FRESH_S = 600  # several packages in a row come from one fetching of the lists
NEEDED = ("apt-get", "dpkg", "dpkg-deb")
MIRROR_VARIABLE = "PYVMM_DEBIAN_MIRROR"


@dataclass(frozen=True, slots=True)
class Package:
    """One package apt chose: its name, architecture, version and download size in bytes."""

    name: str
    arch: str
    version: str
    size: int

    @property
    def spec(self) -> str:
        """The package as apt-get takes it."""
        return f"{self.name}:{self.arch}={self.version}"


def machine_arch() -> str:
    """This machine's architecture in Debian's words (amd64, arm64)."""
    require_tools()
    return _run(["dpkg", "--print-architecture"]).strip()


def require_tools() -> None:
    """Refuse a machine that cannot unpack Debian packages.

    Raises:
        HostError: apt or dpkg is missing, or Debian's archive keyring.
    """
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        raise HostError(
            f"the emulated host is made from Debian packages, and {', '.join(missing)} is missing",
            hint="run pyvmm on Debian or a system with apt and dpkg (Fedora: dnf install apt dpkg)",
        )
    if not KEYRING.exists():
        raise HostError(
            f"Debian's archive keyring is missing ({KEYRING})",
            hint="apt-get install debian-archive-keyring",
        )


class Suite:
    """One Debian suite, seen through a private apt that knows this machine's and arm64 packages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = cache_dir("apt", name)
        self._config = self.path / "apt.conf"
        self._ready = False

    def closure(self, names: Iterable[str], *, recommends: bool = False) -> list[Package]:
        """Return what apt would install for ``names`` on an empty system, dependencies included."""
        self._prepare()
        option = f"APT::Install-Recommends={'true' if recommends else 'false'}"
        output = self._apt("install", "-y", "-o", option, "--print-uris", *names)
        return [p for line in output.splitlines() if (p := _parse_uri(line)) is not None]

    def unpack(self, packages: Iterable[Package], into: Path, progress: Progress) -> None:
        """Download ``packages`` (checked by apt against the archive's signatures) and unpack them.

        Raises:
            HostError: a download or the unpacking failed.
        """
        wanted = list(packages)
        downloads = into / ".debs"
        downloads.mkdir(parents=True)
        with progress.watch(downloads, sum(p.size for p in wanted)):
            self._apt("download", *(p.spec for p in wanted), cwd=downloads)
        for deb in sorted(downloads.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(deb), str(into)])
            deb.unlink()
        downloads.rmdir()

    def _prepare(self) -> None:
        """Write the private configuration and fetch the package lists, once a process."""
        if self._ready:
            return
        require_tools()
        with locked(self.path / ".lock"):
            for part in ("state/lists/partial", "cache/archives/partial", "empty"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            (self.path / "status").touch()
            sources = self.path / "sources.list"
            source = f"deb [signed-by={KEYRING}] {mirror()} {self.name} main\n"
            if not sources.exists() or sources.read_text() != source:
                sources.write_text(source)
            self._config.write_text(self._configuration())
            if not self._fresh():
                self._apt("update", "--error-on=any")
                (self.path / "updated").touch()
        self._ready = True

    def _fresh(self) -> bool:
        """Whether the lists were fetched from this very source a short while ago."""
        stamp = self.path / "updated"
        newest = (self.path / "sources.list").stat().st_mtime
        return stamp.exists() and newest <= stamp.stat().st_mtime > time.time() - LISTS_FRESH_S

    def _configuration(self) -> str:
        native = machine_arch()
        architectures = "; ".join(f'"{a}"' for a in dict.fromkeys((native, "arm64")))
        return f"""\
Dir::State "{self.path}/state";
Dir::State::status "{self.path}/status";
Dir::Cache "{self.path}/cache";
Dir::Etc::SourceList "{self.path}/sources.list";
Dir::Etc::SourceParts "{self.path}/empty";
Dir::Etc::Preferences "{self.path}/empty/preferences";
Dir::Etc::PreferencesParts "{self.path}/empty";
APT::Architecture "{native}";
APT::Architectures {{ {architectures}; }};
APT::Default-Release "";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
DPkg::Post-Invoke-Success "";
"""

    def _apt(self, *arguments: str, cwd: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C"}
        return _run(["apt-get", "-q", *arguments], cwd=cwd, env=environment)


def mirror() -> str:
    """The Debian mirror this machine's apt is set up with.

    Raises:
        HostError: none is found (a derivative distribution, or no sources at all).
    """
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return chosen
    command = ["apt-get", "indextargets", "--no-release-info", "--format", "$(SITE)"]
    sites = dict.fromkeys(_run(command).split())
    for site in sites:
        if urlsplit(site).path.rstrip("/").endswith("/debian"):
            return site
    raise HostError(
        "this machine's apt names no Debian mirror",
        hint=f"set {MIRROR_VARIABLE} to the URL of one",
    )


def _parse_uri(line: str) -> Package | None:
    """Read a line of ``--print-uris``: 'URI' NAME_VERSION_ARCH.deb SIZE HASH."""
    fields = line.split()
    if len(fields) < 3 or not fields[0].startswith("'"):
        return None
    name, version, rest = fields[1].split("_")
    return Package(name, _arch(rest), version.replace("%3a", ":"), int(fields[2]))


def _arch(ending: str) -> str:
    arch = ending.removesuffix(".deb")
    return machine_arch() if arch == "all" else arch


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a packaging tool and return its output; what it said is the error when it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode == 0:
        return done.stdout
    said = [line for line in done.stderr.splitlines() if not line.startswith("W:")]
    reason = "; ".join(line.removeprefix("E: ") for line in said[-3:]) or "no reason given"
    raise HostError(f"{' '.join(command[:3])} ...: {reason}", hint=_hint(reason))


def _hint(reason: str) -> str:
    """What to do about a packaging tool's failure."""
    if os.strerror(errno.ENOSPC) in reason:
        return "free some space in the cache, or set XDG_CACHE_HOME to another directory"
    return "check that this machine reaches its Debian mirror: apt-get update"
