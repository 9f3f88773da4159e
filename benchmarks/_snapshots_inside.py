"""Measure for benchmarks/snapshots.py, in the machine that has KVM.

save      from the request, with the guest running, to the complete file. pyvmm's save() stops the
          guest and flushes the file to disk. QEMU's migration to a file, until it reports
          "completed", does neither.
restore   from the start of the program to the first byte of the guest's output. pyvmm runs in a
          fork of this process, as `pyvmm restore` does in an emulated host. QEMU starts from the
          machine's own memory, so that its libraries do not come from a slow file system.
size      bytes on disk, without holes
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyvmm import Config, Machine
from pyvmm.snapshot.restorer import Reading, restore
from pyvmm.snapshot.save import save

HERE = Path(__file__).parents[1]  # in the host's memory
VCPUS = 2
FILLED = b"filled"
BOOT_S = 300.0


class Guest(NamedTuple):
    """The guest: it prints FILLED, and then something every few ms."""

    image: Path
    initrd: Path | None = None


def main(work: Path, qemu: Path, guest: str, mib: int, place: str, rounds: int) -> None:
    """Measure a guest of that size, saved to the user's disk or to tmpfs, and print the results."""
    linux = Guest(work / "Image", work / "initrd")
    with tempfile.TemporaryDirectory(dir=HERE) as own:
        program = Qemu.copy(qemu, Path(own))
        directory = Path(own) if place == "tmpfs" else work
        ours, theirs = (
            linux if guest == "linux" else Guest(HERE / f"filled-{who}")
            for who in ("pyvmm", "qemu")
        )
        found = {
            "pyvmm": measure_pyvmm(ours, directory / "pyvmm.snap", mib, rounds),
            "qemu": measure_qemu(program, theirs, directory / "qemu.state", mib, rounds),
        }
    print(json.dumps(found))


def summary(values: list[float]) -> dict[str, Any]:
    """Return all values and their median."""
    return {"median": statistics.median(values), "values": values}


def on_disk(path: Path) -> float:
    """Return the size on disk in MiB."""
    return path.stat().st_blocks * 512 / (1 << 20)


def timed(work: Callable[[], object]) -> float:
    """Measure the block's time in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# pyvmm


def measure_pyvmm(guest: Guest, path: Path, mib: int, rounds: int) -> dict[str, Any]:
    """Save a guest several times, and restore it several times, lazily and eagerly."""
    out = bytearray()
    config = Config(
        image=guest.image, initrd=guest.initrd, vcpus=VCPUS, memory=mib << 20, name="bench"
    )
    with Machine(config, output=out.extend) as vm:
        thread = threading.Thread(target=vm.run)
        thread.start()
        wait_until(lambda: FILLED in out)
        saves = [timed(lambda: save(vm, path)) for _ in range(rounds)]
        vm.stop()
        thread.join()
    size = on_disk(path)
    ways = {
        reading.value: summary([restore_pyvmm(path, reading) for _ in range(rounds)])
        for reading in Reading
    }
    path.unlink()
    return {"save": summary(saves), "size": summary([size]), **ways}


def restore_pyvmm(path: Path, reading: Reading) -> float:
    """Return the seconds from a fork to the guest's first output."""
    reader, writer = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            with restore(path, lambda data: _write(writer, data), reading=reading) as vm:
                vm.run()
        finally:
            os._exit(1)
    os.close(writer)
    first = os.read(reader, 1)
    took = time.perf_counter() - start
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    assert first, "the guest said nothing"
    return took


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, data)


def wait_until(done: Callable[[], bool]) -> None:
    """Wait for a condition, as long as a boot takes at most."""
    deadline = time.monotonic() + BOOT_S
    while not done():
        assert time.monotonic() < deadline, "the guest did not come up"
        time.sleep(0.05)


# QEMU


class Qemu:
    """QEMU, with its own loader and libraries."""

    def __init__(self, root: Path) -> None:
        libraries = sorted({path.parent for path in root.glob("lib*/**/*.so*")})
        self._command = [
            str(root / "ld.so"), "--library-path", ":".join(map(str, libraries)),
            str(root / "qemu-system-aarch64"), "-L", str(root / "share"),
            "-accel", "kvm", "-M", "virt,gic-version=3", "-cpu", "host", "-smp", str(VCPUS),
            "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        ]  # fmt: skip

    @classmethod
    def copy(cls, tree: Path, place: Path) -> Qemu:
        """Copy QEMU from an unpacked Debian tree to a directory."""
        root = place / "qemu"
        (root / "share").mkdir(parents=True)
        program = tree / "usr/bin/qemu-system-aarch64"
        loader = tree / "lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"
        shutil.copy(loader, root / "ld.so")
        shutil.copy(program, root)
        for name, found in _needed(tree, program).items():
            target = root / "lib" / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(found, target)
        return cls(root)

    @contextlib.contextmanager
    def started(self, mib: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a machine with that memory."""
        process = subprocess.Popen(
            [*self._command, "-m", str(mib), *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _needed(tree: Path, program: Path) -> dict[str, Path]:
    """Return the names of all libraries that a program needs (ELF's DT_NEEDED)."""
    from elftools.elf.elffile import ELFFile

    all_there = {path.name: path for path in tree.glob("**/aarch64-linux-gnu/**/*.so*")}
    found: dict[str, Path] = {}
    waiting = [program]
    while waiting:
        with waiting.pop().open("rb") as file:
            dynamic: Any = ELFFile(file).get_section_by_name(".dynamic")
            names = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
        for name in names:
            if name not in found and name in all_there:
                found[name] = all_there[name]
                waiting.append(all_there[name])
    return found


def measure_qemu(qemu: Qemu, guest: Guest, path: Path, mib: int, rounds: int) -> dict[str, Any]:
    """Migrate a guest to a file and from it, several times."""
    saves = []
    boot = ["-kernel", str(guest.image)]
    if guest.initrd is not None:
        boot += ["-initrd", str(guest.initrd), "-append", "console=ttyAMA0"]
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            monitor = Path(name) / "qmp"
            qmp = ["-qmp", f"unix:{monitor},server=on,wait=off"]
            # One boot gives one save: QEMU cannot run on after a migration.
            source = boot if not number else ["-incoming", f"exec:cat {path}"]
            with qemu.started(mib, *qmp, *source) as process:
                _read_until(process, b"" if number else FILLED)
                new = path.with_suffix(".new")
                saves.append(timed(lambda: migrate(monitor, new)))  # noqa: B023 - called at once
            new.replace(path)
    restores = []
    for _ in range(rounds):
        start = time.perf_counter()
        with qemu.started(mib, "-incoming", f"exec:cat {path}") as process:
            assert process.stdout is not None
            assert process.stdout.read(1), "the guest said nothing"
            restores.append(time.perf_counter() - start)
    size = on_disk(path)
    path.unlink()
    return {"save": summary(saves), "restore": summary(restores), "size": summary([size])}


def _read_until(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Wait for a text of the guest, or any output; read and drop the rest."""
    assert process.stdout is not None
    seen = b""
    while not seen or text not in seen:
        data = os.read(process.stdout.fileno(), 4096)
        assert data, seen
        seen = seen[-100:] + data
    stdout = process.stdout.fileno()

    def drop() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(stdout, 4096):
                pass

    threading.Thread(target=drop, daemon=True).start()


def migrate(monitor: Path, path: Path) -> None:
    """Migrate to a file, as fast as it goes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(monitor))
        stream = connection.makefile("rw", encoding="utf-8")
        stream.readline()  # the greeting

        def ask(command: str, **arguments: Any) -> dict[str, Any]:
            stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            stream.flush()
            while "event" in (answer := json.loads(stream.readline())):
                pass
            assert "return" in answer, answer
            result: dict[str, Any] = answer["return"]
            return result

        ask("qmp_capabilities")
        ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        ask("migrate", uri=f"exec:cat >{path}")
        while (status := ask("query-migrate").get("status")) != "completed":
            assert status not in ("failed", "cancelled"), status
            time.sleep(0.005)


if __name__ == "__main__":
    _, files, tree, what, size, where, times = sys.argv
    main(Path(files), Path(tree), what, int(size), where, int(times))
