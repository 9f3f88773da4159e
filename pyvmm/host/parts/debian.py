"""Debian packages, got by a private apt for each suite: without root, and without a system change.

The mirror and all other settings (proxies, certificates) come from this machine's apt
configuration.  Lists and downloads are in pyvmm's cache.  Nothing is installed.  apt verifies the
packages with the Debian archive keyring.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pyvmm.base.dirs import cache_dir, locked
from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.host.logs import failure
from pyvmm.host.parts.trees import PACKAGES
from pyvmm.host.progress import Progress

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_FRESH_S = 600  # packages fetched one after the other use the same lists
NEEDED = ("apt-get", "apt-cache", "dpkg", "dpkg-deb")
BACKPORTS = "-backports"
ABSENT = re.compile(r"Depends: <(.+)>")  # apt-cache's form of a missing package
# apt's error for a mirror that answers and lacks the suite.
NO_SUITE = re.compile(r"^E: The repository '.*' does not have a Release file", re.MULTILINE)
MIRROR_VARIABLE = "PYVMM_DEBIAN_MIRROR"
CHOOSE_MIRROR = f"export {MIRROR_VARIABLE}=URL, with the URL of a Debian mirror"
KEYRING_PACKAGE = "debian-archive-keyring"
FEDORAS_KEYRING_PACKAGE = "debian-keyring"  # Debian's package of that name is another one


class Package(Record):
    """A package that apt chose, with its download size in bytes."""

    name: str
    arch: str
    version: str
    size: int

    @property
    def spec(self) -> str:
        """The package as an argument of apt-get."""
        return f"{self.name}:{self.arch}={self.version}"


class PackagingError(HostError):
    """A failed packaging tool; ``stderr`` is all of its standard error."""

    stderr = ""


class SuiteMissingError(HostError):
    """A mirror that answers and has no such suite."""

    def __init__(self, suite: str, where: str) -> None:
        super().__init__(
            f"the Debian mirror {where} has no suite {suite}",
            hint=f"Debian's archive keeps old suites: export {MIRROR_VARIABLE}=URL, with its URL",
        )
        self.suite = suite
        self.mirror = where


def machine_arch() -> str:
    """Return Debian's name of this machine's architecture (amd64, arm64)."""
    require_tools()
    return _run(["dpkg", "--print-architecture"]).strip()


def require_tools() -> None:
    """Check that this machine can unpack Debian packages.

    Raises:
        HostError: apt, dpkg or Debian's archive keyring is missing.
    """
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        raise HostError(
            "the emulated host is made from Debian packages, and "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            hint=_install("apt", "dpkg", KEYRING_PACKAGE),
        )
    if not KEYRING.exists():
        raise HostError(
            f"Debian's archive keyring is missing ({KEYRING})",
            hint=_install(KEYRING_PACKAGE),
        )


class Suite:
    """One Debian suite, with packages for this machine and for arm64.

    With ``arch`` it has the packages of that architecture alone.
    """

    def __init__(self, name: str, arch: str | None = None) -> None:
        self.name = name
        self._arch = arch
        self.path = cache_dir("apt", name if arch is None else f"{name}-{arch}")
        self._config = self.path / "apt.conf"
        self._ready = False

    def closure(self, names: Iterable[str]) -> list[Package]:
        """Return the packages that apt would install for ``names`` on an empty system."""
        self._prepare()
        option = "APT::Install-Recommends=false"
        output = self._apt("apt-get", "install", "-y", "-o", option, "--print-uris", *names)
        native = self._arch or machine_arch()
        return [p for line in output.splitlines() if (p := _parse_uri(line, native)) is not None]

    def unpack(self, packages: Iterable[Package], into: Path, progress: Progress) -> None:
        """Download ``packages``, unpack them, and list them in the file PACKAGES.

        Raises:
            HostError: a download or the unpacking failed.
        """
        wanted = list(packages)
        downloads = into / ".debs"
        for deb in self.download(wanted, downloads, progress):
            _run(["dpkg-deb", "-x", str(deb), str(into)])
            deb.unlink()
        downloads.rmdir()
        (into / PACKAGES).write_text("".join(f"{p.spec}\n" for p in wanted))

    def names(self, beginning: str) -> list[str]:
        """Return the names of packages of any architecture that begin with ``beginning``."""
        self._prepare()
        return self._apt("apt-cache", "pkgnames", beginning).split()

    def versions(self, specs: Iterable[str]) -> list[tuple[str, str]]:
        """Return the packages of this suite itself, as (name, version).

        A specification is NAME or NAME:ARCHITECTURE.  A name can occur several times.
        """
        self._prepare()
        wanted = list(specs)
        lines = self._apt("apt-cache", "madison", *wanted).splitlines() if wanted else []
        rows = [[field.strip() for field in line.split("|")] for line in lines]
        return [
            (row[0].partition(":")[0], row[1])
            for row in rows
            if len(row) == 3 and f" {self.name}/" in row[2] and row[2].endswith(" Packages")
        ]

    def lacking(self, specs: Iterable[str]) -> dict[str, list[str]]:
        """Return the dependencies that this suite lacks, by the package that needs them."""
        self._prepare()
        wanted = list(specs)
        found: dict[str, list[str]] = {}
        name = ""
        said = self._apt("apt-cache", "depends", "--important", *wanted) if wanted else ""
        for line in said.splitlines():
            if not line.startswith((" ", "|")):
                name = line.partition(":")[0]
                found[name] = []
            elif match := ABSENT.search(line):
                found[name].append(match[1].partition(":")[0])
        return found

    def download(self, packages: Iterable[Package], into: Path, progress: Progress) -> list[Path]:
        """Download ``packages``; apt checks their signatures.

        Raises:
            HostError: a download failed.
        """
        self._prepare()
        wanted = list(packages)
        into.mkdir(parents=True)
        with progress.watch(into, sum(p.size for p in wanted)):
            self._apt("apt-get", "download", *(p.spec for p in wanted), cwd=into)
        return sorted(into.glob("*.deb"))

    def _prepare(self) -> None:
        """Write the private configuration and fetch the package lists, once per process."""
        if self._ready:
            return
        require_tools()
        with locked(self.path / ".lock"):
            for part in ("state/lists/partial", "cache/archives/partial", "empty"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            (self.path / "status").touch()
            sources = self.path / "sources.list"
            where = mirror()
            # Backports need the packages of their release.
            suites = dict.fromkeys((self.name.removesuffix(BACKPORTS), self.name))
            source = "".join(f"deb [signed-by={KEYRING}] {where} {s} main\n" for s in suites)
            if not sources.exists() or sources.read_text() != source:
                sources.write_text(source)
            self._config.write_text(self._configuration())
            if not self._fresh():
                self._update(where)
                (self.path / "updated").touch()
        self._ready = True

    def _update(self, where: str) -> None:
        try:
            self._apt("apt-get", "update", "--error-on=any")
        except PackagingError as error:
            if NO_SUITE.search(error.stderr):
                raise SuiteMissingError(self.name, where) from error
            raise

    def _fresh(self) -> bool:
        """Return whether the lists of this source were fetched recently."""
        stamp = self.path / "updated"
        newest = (self.path / "sources.list").stat().st_mtime
        return stamp.exists() and newest <= stamp.stat().st_mtime > time.time() - LISTS_FRESH_S

    def _configuration(self) -> str:
        native = self._arch or machine_arch()
        every = (native,) if self._arch else (native, "arm64")
        architectures = "; ".join(f'"{a}"' for a in dict.fromkeys(every))
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
APT::Default-Release "{self.name if self.name.endswith(BACKPORTS) else ""}";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
DPkg::Post-Invoke-Success "";
"""

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        """Run one of apt's tools with the private configuration."""
        environment = {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C"}
        return _run([tool, "-q", *arguments], cwd=cwd, env=environment)


def _install(*packages: str) -> str:
    """Return a hint: the commands that install packages, and those that set a mirror."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    wanted = " ".join(packages)
    sudo = "" if os.geteuid() == 0 else "sudo "
    if system.get("ID") == "fedora":
        names = wanted.replace(KEYRING_PACKAGE, FEDORAS_KEYRING_PACKAGE)
        command = f"{sudo}dnf install {names}"
    elif "debian" in (system.get("ID"), *system.get("ID_LIKE", "").split()):
        command = f"{sudo}apt-get install {wanted}"
    else:
        command = f"install {wanted}"
    return command if _mirror() else f"{command}, then {CHOOSE_MIRROR}"


def mirror() -> str:
    """Return the Debian mirror of this machine's apt.

    Raises:
        HostError: there is none (a derived distribution, or no sources).
    """
    found = _mirror()
    if found is None:
        raise HostError("this machine's apt names no Debian mirror", hint=CHOOSE_MIRROR)
    return found


def _mirror() -> str | None:
    """Return the chosen mirror, or the first one of apt's configuration."""
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen or shutil.which("apt-get") is None:
        return chosen or None
    command = ["apt-get", "indextargets", "--no-release-info", "--format", "$(SITE)"]
    sites = dict.fromkeys(_run(command).split())
    return next((s for s in sites if urlsplit(s).path.rstrip("/").endswith("/debian")), None)


def _parse_uri(line: str, native: str) -> Package | None:
    """Parse a line of ``--print-uris``: 'URI' NAME_VERSION_ARCH.deb SIZE HASH."""
    fields = line.split()
    if len(fields) < 3 or not fields[0].startswith("'"):
        return None
    name, version, rest = fields[1].split("_")
    arch = rest.removesuffix(".deb")
    arch = native if arch == "all" else arch
    return Package(name, arch, version.replace("%3a", ":"), int(fields[2]))


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a packaging tool and return its output."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith("W:")]
    reason = "\n".join(line.removeprefix("E: ") for line in lines)
    whole = done.stdout + done.stderr
    shown = failure(f"{' '.join(command[:3])} ...", reason, whole=whole)
    error = PackagingError(shown.message, hint=_hint(reason))
    error.stderr = done.stderr
    raise error


def _hint(reason: str) -> str:
    """Return the hint for a packaging tool's failure."""
    if os.strerror(errno.ENOSPC) in reason:
        return "free space in the cache, or set XDG_CACHE_HOME to another directory"
    return "check that this machine reaches its Debian mirror: apt-get update"
