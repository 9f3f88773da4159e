"""Starting an emulated host: from its saved state, which one cold boot makes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from pyvmm.base.dirs import cached, try_lock
from pyvmm.base.files import write_whole
from pyvmm.base.signals import handling
from pyvmm.errors import EXIT_SIGNAL, HostError
from pyvmm.host import qemu, saved
from pyvmm.host.confined.launch import launch
from pyvmm.host.parts import initrd, kernel, payload, root, tools, trees
from pyvmm.host.parts.trees import Tree
from pyvmm.host.progress import Progress
from pyvmm.host.running import UNCONFINED, Running, end, end_orphan, starting_failed
from pyvmm.host.settings import HostSettings
from pyvmm.host.wire import FIRST_PORTS

READY: Final = "pyvmm-agent: ready"
SOCKETS_S: Final = 20.0


def start(
    settings: HostSettings, made_of: list[Tree | None], sockets: Path, progress: Progress
) -> Running:
    """Start the host from its saved state, which a cold boot makes the first time.

    The host's name was made from the trees ``made_of``.  The caller holds the host's start lock.

    Raises:
        HostError: a part of the host is not available, or QEMU does not start.
    """
    directory = saved.directory(sockets.name)
    with signals_unwind():
        facts = saved.facts(directory)
        if directory.is_dir() and not _intact(directory, facts):
            progress.say(f"{directory} is damaged: making it again")
            saved.remove(directory)
            facts = None
        plan = plan_for(settings, facts, progress)
        for seen in trees.old_looks(settings):
            progress.say(
                f"the list of Debian {seen.suite} is {seen.days:.0f} days old "
                "(`pyvmm host list` can refresh it)"
            )
        if not directory.is_dir():
            build = partial(_cold_boot, settings, made_of, plan, sockets, progress)
            with progress.step(f"booting the emulated host once ({settings.label})"):
                cached(directory, build)
            saved.prune(directory, settings)
        os.utime(directory)
        return _warm_start(plan, directory, sockets)


def fetch(settings: HostSettings, progress: Progress) -> None:
    """Get the kernel and the QEMU into the cache: their versions are part of the host's name.

    Raises:
        HostError: they are not available.
    """
    with signals_unwind():
        kernel.find(settings.kernel, progress)
        tools.qemu(settings.qemu, progress)


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Raise an exception at SIGTERM and SIGHUP, so that cleanup code runs."""

    def unwind(number: int, frame: object) -> NoReturn:
        raise SystemExit(EXIT_SIGNAL + number)

    with handling((signal.SIGTERM, signal.SIGHUP), unwind):
        yield


def plan_for(
    settings: HostSettings, facts: dict[str, Any] | None, progress: Progress
) -> qemu.QemuPlan:
    """Return what QEMU needs: the files of a saved host (``facts``), or those for a new one."""
    tool = tools.qemu(settings.qemu, progress)
    if facts is not None:
        files = Path(facts["image"]), Path(facts["usr"])
        return qemu.QemuPlan(
            tool, facts["qemu"], settings.cpu, *files,
            sandbox=facts.get("sandbox", False), properties=settings.machine,
        )  # fmt: skip
    found = kernel.find(settings.kernel, progress)
    version = tools.qemu_version(tool)
    return qemu.QemuPlan(
        tool, version, settings.cpu, found.image, root.image(progress),
        sandbox=qemu.has_sandbox(tool), properties=settings.machine,
    )  # fmt: skip


@contextmanager
def fresh(sockets: Path) -> Iterator[int]:
    """Make an empty directory of sockets; yield the lock that QEMU holds until it ends."""
    if sockets.is_dir():
        end_orphan(sockets)
    shutil.rmtree(sockets, ignore_errors=True)
    sockets.mkdir(mode=0o700)
    alive = try_lock(sockets / "alive")
    if alive is None:
        raise HostError(f"{sockets} is in use", hint="run the command again")
    try:
        yield alive
    finally:
        os.close(alive)


def boot(
    settings: HostSettings,
    plan: qemu.QemuPlan,
    into: Path,
    sockets: Path,
    alive: int,
    progress: Progress,
) -> tuple[int, dict[str, Any]]:
    """Boot a host until its agent is ready; its RAM is a file in the directory ``into``.

    Returns:
        QEMU's process id, and the facts about what the host is made of.
    """
    found = kernel.find(settings.kernel, progress)
    archive = into / "initrd"
    initrd.write(archive, found, progress)
    words = f"{qemu.BOOT_ARGUMENTS} rdinit=/init {settings.append}".rstrip()

    def arguments(shared: Path) -> list[str]:
        return [
            *plan.machine(into / "memory", sockets, keep_memory=True, shared=shared),
            "-kernel", str(plan.kernel), "-initrd", str(archive), "-append", words,
        ]  # fmt: skip

    launched = launch(plan.tool, arguments, sockets, alive, [into], [plan.usr, plan.kernel])
    pid = launched.pid
    try:
        qemu.wait_for_line(sockets, READY, pid, qemu.COLD_BOOT_S)
    except BaseException:
        end(pid)
        raise
    archive.unlink()
    facts = {
        "settings": vars(settings), "qemu": plan.version, "cpu": plan.cpu_argument,
        "usr": str(plan.usr), "kernel": found.release, "image": str(found.image),
        "sandbox": plan.sandbox, "memory": saved.memory_size(), "payload": payload.fingerprint(),
        "trees": [tree.path.name for tree in trees.chosen(settings) if tree],
        UNCONFINED: launched.refusal,
    }  # fmt: skip
    return pid, facts


def publish(sockets: Path, pid: int, facts: dict[str, Any]) -> Running:
    """Write about.json, by which commands find the host; return the running host."""
    start_id = os.urandom(8).hex()
    about = {**facts, "pid": pid, "start_id": start_id, "started": time.time()}
    write_whole(sockets / "about.json", f"{json.dumps(about, indent=1)}\n".encode())
    return Running(sockets, start_id, pid, about)


def _cold_boot(
    settings: HostSettings,
    made_of: list[Tree | None],
    plan: qemu.QemuPlan,
    sockets: Path,
    progress: Progress,
    into: Path,
) -> None:
    """Boot the host, save it, and write down what it is made of.

    Another command may have fetched a newer kernel or QEMU since this one chose the host's name.
    Then nothing is saved.
    """
    with fresh(sockets) as alive:
        pid, facts = boot(settings, plan, into, sockets, alive, progress)
        try:
            if trees.chosen(settings) != made_of:
                raise HostError(
                    "another command fetched a newer kernel or QEMU in the meantime",
                    hint="run the command again",
                )
            qemu.save(sockets, into / "state")
        finally:
            end(pid)
    facts["state_sha256"] = _sha256(into / "state")
    (into / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def _warm_start(plan: qemu.QemuPlan, directory: Path, sockets: Path) -> Running:
    """Start QEMU from the saved state."""
    with fresh(sockets) as alive:

        def arguments(shared: Path) -> list[str]:
            memory = directory / "memory"
            machine = plan.machine(memory, sockets, keep_memory=False, shared=shared)
            return [*machine, "-incoming", "defer"]

        launched = launch(plan.tool, arguments, sockets, alive, [directory], [plan.usr])
        pid = launched.pid
        try:
            _wait_for_sockets(sockets, pid)
            qemu.restore(sockets, directory / "state")
            facts = saved.facts(directory) or {}
            return publish(sockets, pid, facts | {UNCONFINED: launched.refusal})
        except BaseException:
            end(pid)
            raise


def _intact(directory: Path, facts: dict[str, Any] | None) -> bool:
    """Return whether a saved host is as its cold boot left it."""
    if facts is None:
        return False
    try:
        size, state = (directory / "memory").stat().st_size, _sha256(directory / "state")
        return (size, state) == (facts["memory"], facts["state_sha256"])
    except (OSError, KeyError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wait_for_sockets(sockets: Path, pid: int) -> None:
    """Wait until QEMU listens on its last socket: it makes them in order."""
    deadline = time.monotonic() + SOCKETS_S
    while not (sockets / f"p{FIRST_PORTS}").exists():
        if qemu.ended(pid):
            raise starting_failed("QEMU ended at once", sockets)
        if time.monotonic() > deadline:
            raise starting_failed(f"QEMU made no sockets in {SOCKETS_S:.0f} s", sockets)
        time.sleep(0.002)
