"""Starting an emulated host: a cold boot that is saved once, warm starts from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from pyvmm.base.dirs import cached, try_lock
from pyvmm.errors import EXIT_SIGNAL, HostError
from pyvmm.host import qemu, saved
from pyvmm.host.parts import extension, kernel, payload, root, tools, trees
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.parts.trees import Tree
from pyvmm.host.progress import Progress
from pyvmm.host.running import Running, end, end_orphan, starting_failed
from pyvmm.host.settings import HostSettings
from pyvmm.host.wire import PORTS

READY: Final = "pyvmm-agent: ready"
SOCKETS_S: Final = 20.0
LIBRARY: Final = "payload/lib"  # in the initramfs; init.sh moves it to /run/pyvmm/lib


def start(
    settings: HostSettings, made_of: list[Tree | None], sockets: Path, progress: Progress
) -> Running:
    """Start the host from its saved state, which a cold boot makes the first time.

    ``made_of`` is the trees that it is named after. The caller holds the host's start lock.

    Raises:
        HostError: something it is made of cannot be had, or QEMU does not start.
    """
    with _signals_unwind():
        return Starter(settings, made_of, sockets, progress).start()


def fetch(settings: HostSettings, progress: Progress) -> None:
    """Have the kernel and the QEMU in the cache: what a host is called depends on their versions.

    Raises:
        HostError: they cannot be had.
    """
    with _signals_unwind():
        kernel.find(settings.kernel, progress)
        tools.qemu(settings.qemu, progress)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Have signals that would end this process raise: no QEMU or temporary directory is left."""

    def unwind(number: int, frame: object) -> None:
        raise SystemExit(EXIT_SIGNAL + number)

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def boot_counted(settings: HostSettings, sockets: Path, progress: Progress) -> Running:
    """Boot a host in which time counts instructions, for benchmarks; it is not saved.

    Two runs of a command in it take the same time to about 1 %, whatever else this machine does.

    Raises: as start().
    """
    plan = replace(_plan(settings, None, progress), counted=True)
    start_id = os.urandom(8).hex()
    with _signals_unwind(), tempfile.TemporaryDirectory(prefix="pyvmm-") as scratch:
        with _fresh(sockets) as alive:
            pid, facts = _boot(settings, plan, Path(scratch), sockets, alive, progress)
        about = {**facts, "pid": pid, "start_id": start_id, "started": time.time()}
        _write_whole(sockets / "about.json", json.dumps(about, indent=1) + "\n")
        return Running(sockets, start_id, pid, about)


def _boot(
    settings: HostSettings,
    plan: qemu.QemuPlan,
    into: Path,
    sockets: Path,
    alive: int,
    progress: Progress,
) -> tuple[int, dict[str, Any]]:
    """Boot a host with its RAM in a file of that directory until its agent is there.

    Returns:
        QEMU's process id, and what the host is made of.
    """
    found = kernel.find(settings.kernel, progress)
    initrd = into / "initrd"
    with initrd.open("wb") as file:
        _write_initrd(CpioWriter(file), found, into, progress)
    arguments = plan.machine(into / "memory", sockets, keep_memory=True)
    words = f"{qemu.BOOT_ARGUMENTS} rdinit=/init {settings.append}".rstrip()
    arguments += ["-kernel", str(plan.kernel), "-initrd", str(initrd), "-append", words]
    pid = qemu.launch(plan.tool, arguments, sockets, [alive])
    try:
        qemu.wait_for_line(sockets, READY, pid, qemu.COLD_BOOT_S)
    except BaseException:
        end(pid)
        raise
    initrd.unlink()
    facts = {
        "settings": asdict(settings), "qemu": plan.version, "cpu": plan.cpu_argument,
        "usr": str(plan.usr), "kernel": found.release, "image": str(found.image),
        "memory": saved.memory_size(), "payload": payload.fingerprint(),
        "trees": [tree.path.name for tree in trees.chosen(settings) if tree],
    }  # fmt: skip
    return pid, facts


class Starter:
    """What one start of one host needs at hand."""

    def __init__(
        self,
        settings: HostSettings,
        made_of: list[Tree | None],
        sockets: Path,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._made_of = made_of
        self._sockets = sockets
        self._progress = progress
        self._directory = saved.directory(sockets.name)
        self._facts = saved.facts(self._directory)
        if self._directory.is_dir() and not _intact(self._directory, self._facts):
            progress.say(f"{self._directory} is damaged: making it again")
            saved.remove(self._directory)
            self._facts = None
        self._plan = _plan(settings, self._facts, progress)

    def start(self) -> Running:
        """Make the saved state where there is none, and start from it."""
        for seen in trees.old_looks(self._settings):
            self._progress.say(
                f"Debian {seen.suite} is taken as it was {seen.days:.0f} days ago; "
                "`pyvmm host list --refresh` looks again"
            )
        if not self._directory.is_dir():
            with self._progress.step(f"booting the emulated host once ({self._settings.label})"):
                cached(self._directory, self._cold_boot)
            saved.prune(self._directory, self._settings)
        os.utime(self._directory)
        return self._warm_start()

    def _cold_boot(self, into: Path) -> None:
        """Boot the host, wait for its agent, save it, and say what it is made of."""
        with _fresh(self._sockets) as alive:
            pid, facts = _boot(
                self._settings, self._plan, into, self._sockets, alive, self._progress
            )
            try:
                self._check_trees()
                qemu.save(self._sockets, into / "state")
            finally:
                end(pid)
        facts["state_sha256"] = _sha256(into / "state")
        (into / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")

    def _check_trees(self) -> None:
        """Refuse a host of another kernel or QEMU than it is called after.

        Another command may have fetched a newer one since this one chose the name.
        """
        if trees.chosen(self._settings) != self._made_of:
            raise HostError(
                "another command fetched a newer kernel or QEMU in the meantime",
                hint="run the command again",
            )

    def _warm_start(self) -> Running:
        """Start QEMU from the saved state."""
        plan, directory, sockets = self._plan, self._directory, self._sockets
        start_id = os.urandom(8).hex()
        with _fresh(sockets) as alive:
            arguments = plan.machine(directory / "memory", sockets, keep_memory=False)
            pid = qemu.launch(plan.tool, [*arguments, "-incoming", "defer"], sockets, [alive])
            try:
                _wait_for_sockets(sockets, pid)
                qemu.restore(sockets, directory / "state")
                about = {
                    **(saved.facts(directory) or {}),
                    "pid": pid,
                    "start_id": start_id,
                    "started": time.time(),
                }
                _write_whole(sockets / "about.json", json.dumps(about, indent=1) + "\n")
            except BaseException:
                end(pid)
                raise
        return Running(sockets, start_id, pid, about)


def _plan(
    settings: HostSettings, facts: dict[str, Any] | None, progress: Progress
) -> qemu.QemuPlan:
    """Have what QEMU needs: what a saved host was made with, or what a new one is made of."""
    tool = tools.qemu(settings.qemu, progress)
    if facts is not None:
        files = Path(facts["image"]), Path(facts["usr"])
        return qemu.QemuPlan(tool, facts["qemu"], settings.cpu, *files)
    found = kernel.find(settings.kernel, progress)
    version = tools.qemu_version(tool)
    return qemu.QemuPlan(tool, version, settings.cpu, found.image, root.image(progress))


def _intact(directory: Path, facts: dict[str, Any] | None) -> bool:
    """Whether a saved host is what its cold boot left."""
    if facts is None:
        return False
    try:
        size, state = (directory / "memory").stat().st_size, _sha256(directory / "state")
        return (size, state) == (facts["memory"], facts["state_sha256"])
    except (OSError, KeyError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _fresh(sockets: Path) -> Iterator[int]:
    """An empty directory of sockets, and the lock QEMU is to hold for as long as it lives."""
    if sockets.is_dir():
        end_orphan(sockets)
    shutil.rmtree(sockets, ignore_errors=True)
    sockets.mkdir(mode=0o700)
    alive = try_lock(sockets / "alive")
    if alive is None:
        raise HostError(f"{sockets} is in use", hint="pyvmm host stop --all")
    try:
        yield alive
    finally:
        os.close(alive)


def _write_initrd(
    archive: CpioWriter, found: kernel.Kernel, place: Path, progress: Progress
) -> None:
    """Write it; what it takes to make is in ``place``, which goes if this is killed."""
    modules = found.modules()
    archive.device("dev/console", 5, 1)
    archive.file("init", saved.INIT.read_bytes(), 0o755)
    archive.file("busybox", root.busybox(progress).read_bytes(), 0o755)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
    for name, content in modules.items():
        archive.file(f"modules/{name}.ko", content)
    _write_payload(archive, place, progress)
    archive.close()


def _write_payload(archive: CpioWriter, place: Path, progress: Progress) -> None:
    """Put pyvmm, compiled, into the initramfs."""
    built = extension.build(progress)
    with tempfile.TemporaryDirectory(prefix="payload-", dir=place) as scratch:
        copy = Path(scratch)
        for path in payload.files():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes((payload.PACKAGE / path).read_bytes())
        root.compile_python(copy, "/run/pyvmm/lib/pyvmm", progress)
        for path in sorted(p for p in copy.rglob("*") if p.is_file()):
            archive.file(f"{LIBRARY}/pyvmm/{path.relative_to(copy)}", path.read_bytes())
    archive.file(f"{LIBRARY}/pyvmm/kvm/{payload.EXTENSION}", built.read_bytes(), 0o755)


def _wait_for_sockets(sockets: Path, pid: int) -> None:
    """Wait until QEMU listens on its last socket: it makes them in order."""
    deadline = time.monotonic() + SOCKETS_S
    while not (sockets / f"p{PORTS}").exists():
        if qemu.ended(pid):
            raise starting_failed("QEMU ended at once", sockets)
        if time.monotonic() > deadline:
            raise starting_failed("QEMU does not come up", sockets)
        time.sleep(0.002)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(text)
    partial.rename(path)
