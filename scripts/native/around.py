"""The files that the arm64 machine gets: the clone's commits, and settings of apt and pip.

The settings come from this machine's apt and pip, and go into a temporary directory alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError
from pyvmm.host.parts.debian import KEYRING, mirror
from pyvmm.host.parts.tools import TOOLS_SUITE

ROOT: Final = Path(__file__).resolve().parents[2]
CERTIFICATES: Final = Path("etc/ssl/certs/ca-certificates.crt")
HERE_FROM_INSIDE: Final = "10.0.2.2"  # qemu(1), -netdev user: this machine
APT: Final = re.compile(r"Acquire::(https?::|Check-|Retries)")
PIP: Final = re.compile(r"(?:global|:env:)\.(index-url|extra-index-url|proxy|trusted-host)='(.*)'")
VARIABLES: Final = ("http_proxy", "https_proxy", "no_proxy")


def write_share(into: Path) -> None:
    """Write the files for the machine: pyvmm.bundle with HEAD, and files for its /etc."""
    _run(["git", "-C", str(ROOT), "bundle", "create", "-q", str(into / "pyvmm.bundle"), "HEAD"])
    source = f"deb [signed-by={KEYRING}] {mirror()} {TOOLS_SUITE} main\n"
    settings = _run(["apt-config", "dump"]).splitlines(keepends=True)
    files = {
        "etc/apt/sources.list": source,
        "etc/apt/apt.conf.d/99around": "".join(s for s in settings if APT.match(s)),
        "etc/pip.conf": _pip(),
        "etc/environment": "".join(f"{name}={value}\n" for name, value in _proxies().items()),
    }
    for name, content in files.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_from_inside(content))
    if ("/" / CERTIFICATES).exists():
        (into / CERTIFICATES).parent.mkdir(parents=True)
        shutil.copyfile("/" / CERTIFICATES, into / CERTIFICATES)


def _pip() -> str:
    """Return pip's settings of an index on a network."""
    found = PIP.findall(_run([sys.executable, "-m", "pip", "config", "list"]))
    lines = [f"{name} = {value}" for name, value in found if not value.startswith("file:")]
    return "\n".join(["[global]", f"cert = /{CERTIFICATES}", *lines, ""])


def _proxies() -> dict[str, str]:
    """Return this process's proxies."""
    given = {name.lower(): value for name, value in os.environ.items()}
    return {name: given[name] for name in VARIABLES if name in given}


def _from_inside(text: str) -> str:
    """Rewrite addresses of this machine as the arm64 machine sees them."""
    return re.sub(r"(?<=//)(localhost|127\.0\.0\.1)(?=[:/])", HERE_FROM_INSIDE, text)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"{' '.join(command[:4])}: {done.stderr.strip()}")
    return done.stdout
