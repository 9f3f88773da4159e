#!/usr/bin/env python3
"""Run `make run` and `make test` on fresh Debian systems, as root and as an ordinary user.

Usage: test_distros.py [SUITE...] [--user root|user] [--only run|test] [--dir DIR]

Each suite is a minimal system (debootstrap) in a directory of its own, kept for the next run.
Each user has a fresh clone of HEAD and an empty cache.  The commands run in namespaces of their
own: when they end, or this script is killed, no process and no mount of theirs remains.  The
mirror is the one of this machine's apt.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pyvmm.errors import HostError  # noqa: E402 - found through the line above
from pyvmm.host.parts.debian import KEYRING, mirror  # noqa: E402 - likewise
from pyvmm.host.parts.tools import TOOLS_SUITE, tree  # noqa: E402 - likewise
from pyvmm.host.progress import Progress  # noqa: E402 - likewise

SUITES: Final = ("bookworm", "trixie")
PACKAGES: Final = ("python3", "python3-venv", "make", "git", "ca-certificates")
# The path of the ordinary user's clone shows every missing quote.
CLONES: Final = {"root": "/root/pyvmm", "user": "/home/user/a user's clöne, made afresh"}
COMMANDS: Final = {"run": "make run", "test": "make test"}
# How this machine reaches its package archives; without these files a root reaches none.
CONFIGURATION: Final = (
    "etc/resolv.conf", "etc/hosts", "etc/apt/apt.conf.d", "etc/apt/auth.conf.d", "etc/pip.conf",
    "etc/xdg/pip", "etc/ssl/certs/ca-certificates.crt", "usr/local/share/ca-certificates",
)  # fmt: skip
ENVIRONMENT: Final = (
    "PIP_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
LAST_LINES: Final = 15

# A command's own namespaces, which end with it, and with this script.
NAMESPACES: Final = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child",
)  # fmt: skip
# PID 1 of the namespaces is a shell, which reaps orphans of the commands.
ENTER: Final = """\
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --bind /dev "$1/dev"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$1/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
root=$1 user=$2
shift 2
chroot --userspec="$user" "$root" "$@"
exit $?
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one command of one user."""

    suite: str
    user: str
    command: str
    code: int
    seconds: float


def main() -> int:
    """Run what the command line asks for; return 0 if every command succeeded."""
    words = _arguments()
    if os.geteuid() != 0:
        given = f" DISTRO={shlex.quote(' '.join(sys.argv[1:]))}" if sys.argv[1:] else ""
        return _refuse("debootstrap and chroot need root", f"sudo make test-distros{given}")
    directory = words.dir.resolve()
    outcomes: list[Outcome] = []
    for suite in words.suites or SUITES:
        root = _system(suite, directory)
        for user in words.user or CLONES:
            _fresh_home(root, user)
            for name in words.only or COMMANDS:
                outcomes.append(_run(root, user, name, directory / "logs"))
    _show(outcomes)
    return int(any(outcome.code for outcome in outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: {' '.join(SUITES)}")
    parser.add_argument("--user", action="append", choices=sorted(CLONES))
    parser.add_argument("--only", action="append", choices=sorted(COMMANDS))
    parser.add_argument("--dir", type=Path, default=ROOT / "build/distros")
    return parser.parse_args()


def _system(suite: str, directory: Path) -> Path:
    """Return a minimal system of that suite, made if missing, configured like this machine."""
    root = directory / suite
    if not root.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f".{suite}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with _Step(f"{suite}: making a minimal system"):
            _debootstrap(suite, partial, directory / "logs")
            partial.rename(root)
    for name in CONFIGURATION:
        _copy(Path("/") / name, root / name)
    _copy(Path.home() / ".config/pip", root / "etc/skel/.config/pip")
    _write_sources(suite, root)
    return root


def _debootstrap(suite: str, into: Path, logs: Path) -> None:
    """Unpack and configure the suite's packages."""
    script, environment = shutil.which("debootstrap"), dict(os.environ)
    if script is None:
        unpacked = tree("debootstrap", TOOLS_SUITE, ["debootstrap"], Progress())
        script = f"{unpacked}/usr/sbin/debootstrap"
        environment["DEBOOTSTRAP_DIR"] = f"{unpacked}/usr/share/debootstrap"
    if shutil.which("wget") is None:
        raise HostError("debootstrap fetches with wget, which is missing",
                        hint="apt-get install wget")  # fmt: skip
    command = [
        *NAMESPACES, script, "--variant=minbase", f"--include={','.join(PACKAGES)}",
        f"--keyring={KEYRING}", suite, str(into), mirror(),
    ]  # fmt: skip
    log = logs / f"{suite}-debootstrap.log"
    if _logged(command, log, environment):
        raise HostError(f"debootstrap {suite} failed", hint=f"the whole log is {log}")


def _write_sources(suite: str, root: Path) -> None:
    """Write the mirror like the suite's installer: one line, or deb822 since trixie."""
    old, new = root / "etc/apt/sources.list", root / "etc/apt/sources.list.d/debian.sources"
    if suite == "bookworm":
        old.write_text(f"deb {mirror()} {suite} main\n")
        return
    old.unlink(missing_ok=True)
    fields = {"Types": "deb", "URIs": mirror(), "Suites": suite, "Components": "main",
              "Signed-By": str(KEYRING)}  # fmt: skip
    new.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a directory if it exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)


def _fresh_home(root: Path, user: str) -> None:
    """Make a home directory that holds only a clone of HEAD."""
    home, clone = _home(user), CLONES[user]
    with _Step(f"{root.name}, {user}: a fresh clone in {shlex.quote(clone)}"):
        shutil.rmtree(root / home.lstrip("/"), ignore_errors=True)
        shutil.rmtree(root / "tmp", ignore_errors=True)
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)
        _check(["git", "-C", str(ROOT), "bundle", "create", str(root / "tmp/pyvmm.bundle"), "HEAD"])
        passwd = (root / "etc/passwd").read_text()
        if f"\n{user}:" not in f"\n{passwd}":
            _check(["chroot", str(root), "useradd", "--shell", "/bin/sh", user])
        _check(["cp", "-a", str(root / "etc/skel"), str(root / home.lstrip("/"))])
        _check(["chroot", str(root), "chown", "-R", f"{user}:{user}", home])
        _check(_inside(root, user, ["git", "clone", "-q", "/tmp/pyvmm.bundle", clone]))


def _home(user: str) -> str:
    return "/root" if user == "root" else f"/home/{user}"


def _inside(root: Path, user: str, command: list[str]) -> list[str]:
    """Return a command line that runs a command in the root, as a user, in own namespaces."""
    environment = {
        "HOME": _home(user), "USER": user, "LOGNAME": user, "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **{name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)},
    }  # fmt: skip
    return [
        *NAMESPACES, "sh", "-euc", ENTER, "sh",
        str(root), f"{user}:{user}", "env", "-i",
        *(f"{name}={value}" for name, value in environment.items()), *command,
    ]  # fmt: skip


def _run(root: Path, user: str, name: str, logs: Path) -> Outcome:
    """Run one of the two commands in the user's clone; show its last lines on failure."""
    log = logs / f"{root.name}-{user}-{name}.log"
    command = _inside(root, user, ["sh", "-c", f'cd "$0" && exec {COMMANDS[name]}', CLONES[user]])
    started = time.monotonic()
    with _Step(f"{root.name}, {user}: {COMMANDS[name]}"):
        code = _logged(command, log, os.environ)
    return Outcome(root.name, user, COMMANDS[name], code, time.monotonic() - started)


def _logged(command: list[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run a command with its output in a file; show the end of the file on failure."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        code = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ).returncode
    if code:
        for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:]:
            print(f"    {line}")
        print(f"  exit code {code}; the whole log is {log}", flush=True)
    return code


def _check(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise HostError(f"{shlex.join(command[:4])} ...: {done.stderr.strip()[-500:]}")


class _Step:
    """The line of one step: its name at once, and its seconds at its end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()

    def __enter__(self) -> None:
        print(f"{self._what} ...", flush=True)

    def __exit__(self, *_: object) -> None:
        print(f"{self._what}: {time.monotonic() - self._started:.0f} s", flush=True)


def _show(outcomes: list[Outcome]) -> None:
    """Print the table of results."""
    rows = [("suite", "user", "path", "command", "rc", "seconds")]
    rows += [(o.suite, o.user, CLONES[o.user], o.command, str(o.code), f"{o.seconds:.0f}")
             for o in outcomes]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _refuse(what: str, remedy: str | None) -> int:
    print(f"test-distros: {what}", *([f"  hint: {remedy}"] if remedy else []), sep="\n",
          file=sys.stderr)  # fmt: skip
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except HostError as error:
        sys.exit(_refuse(error.message, error.hint))
