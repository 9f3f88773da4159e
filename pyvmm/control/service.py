"""What a running VM does when it is asked: the verbs of its control socket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvmm.control.server import Handler
from pyvmm.control.wire import SCHEMA, Message
from pyvmm.errors import UsageError, VmmError
from pyvmm.machine.counts import totals
from pyvmm.machine.machine import Machine
from pyvmm.machine.resizing import PATIENCE_S
from pyvmm.snapshot.save import save

BLOCK: Final = 512  # bytes, of st_blocks.  Source: stat(3type)
IN_RAM: Final = ("Rss:", "Shared_Hugetlb:", "Private_Hugetlb:")


class Service:
    """Answers for a VM: ``machine`` gives it, as a reboot may change it; ``stop`` ends it.

    ``since`` is when it began to run, by the monotonic clock.
    """

    def __init__(
        self, machine: Callable[[], Machine], stop: Callable[[], None], since: float
    ) -> None:
        self._machine = machine
        self._stop = stop
        self._since = since

    @property
    def handlers(self) -> dict[str, Handler]:
        """What can be asked, by name."""
        return {
            "info": self.info,
            "stop": self.stop,
            "pause": self.pause,
            "resume": self.resume,
            "save": self.save,
            "stat": self.stat,
            "registers": self.registers,
            "devices": self.devices,
            "sysrq": self.sysrq,
            "balloon": self.balloon,
            "memory": self.memory,
        }

    def info(self, request: Message) -> Message:
        """What the VM is."""
        machine = self._machine()
        return {
            "schema": SCHEMA,
            "name": machine.config.name,
            "pid": os.getpid(),
            "state": "paused" if machine.is_paused else "running",
            "image": str(machine.config.image.absolute()),
            "vcpus": machine.plan.vcpus,
            "memory_bytes": machine.resizing.size,
            "sve_vls": sorted(machine.vls),
            "uptime_s": round(time.monotonic() - self._since, 3),
        }

    def stop(self, request: Message) -> Message:
        """End the VM at once, with exit code 0, as lkvm does."""
        self._stop()
        return {}

    def pause(self, request: Message) -> Message:
        """Stop every vCPU; no time passes for the guest until it is resumed."""
        machine = self._machine()
        before = machine.is_paused
        machine.pause()
        return {"was_paused": before}

    def resume(self, request: Message) -> Message:
        """Let the vCPUs go on."""
        machine = self._machine()
        before = machine.is_paused
        machine.resume()
        return {"was_paused": before}

    def save(self, request: Message) -> Message:
        """Write a snapshot to "file"; the VM then goes on if "resume", and else ends.

        With "parent", a snapshot's path, only what has changed since that; with "track" KVM notes
        what changes from now on.
        """
        machine = self._machine()
        file, parent = request.get("file"), request.get("parent")
        if not isinstance(file, str) or not isinstance(parent, str | None):
            raise UsageError("no file to save to")
        path = Path(file)
        begin = time.monotonic()
        saved = save(
            machine,
            path,
            parent=None if parent is None else Path(parent),
            track=request.get("track") is True,
        )
        reply = {
            "file": file,
            "identity": saved.identity,
            "bytes_on_disk": path.stat().st_blocks * BLOCK,
            "seconds": round(time.monotonic() - begin, 3),
            "warnings": list(saved.warnings),
        }
        if request.get("resume") is not True:
            self._stop()
        return reply

    def stat(self, request: Message) -> Message:
        """The exits of every vCPU, as pyvmm and as KVM counts them, and the memory in use.

        "sent_without_exit" are the bytes UARTs were given that made none, or none for Python.
        """
        machine = self._machine()
        exits, kernel = machine.counts.exits(), machine.counts.kernel()
        return {
            **self.info(request),
            "exits": totals(exits),
            "exits_by_vcpu": exits,
            "sent_without_exit": machine.counts.bytes_without_exit(),
            "kvm": totals(kernel),
            "kvm_by_vcpu": kernel,
            "memory_resident_bytes": _resident(machine),
            "balloon": machine.resizing.balloon_info(),
            "hotplug": machine.resizing.plugged_info(),
            "guest_memory": _statistics(machine),
            "devices": [
                {key: device[key] for key in ("region", "device", "backing", "counts")}
                for device in machine.devices()
            ],
        }

    def devices(self, request: Message) -> Message:
        """Every virtio device: its status, features, configuration, queues and counts."""
        return {"devices": self._machine().devices()}

    def registers(self, request: Message) -> Message:
        """Every register of one vCPU, "vcpu", or of all; the VM stands still meanwhile.

        "whole" keeps Z, P and FFR at the longest length the guest could choose.
        """
        from pyvmm.kvm.vgic import Vgic
        from pyvmm.machine.registerdump import read_registers

        machine = self._machine()
        number = vcpu_number(request, machine)
        whole = request.get("whole") is True
        gic = machine.board.irqchip.gic
        with machine.paused():
            read = [
                read_registers(
                    vcpu, machine.vls, gic=gic if isinstance(gic, Vgic) else None, whole=whole
                )
                for vcpu in machine.vcpus
                if number in (None, vcpu.id)
            ]
        exits = machine.counts.exits()
        return {"vcpus": [{**vcpu, "exits": exits[vcpu["vcpu"]]} for vcpu in read]}

    def balloon(self, request: Message) -> Message:
        """Resize the balloon, and say how it stands.

        "size" is bytes in all, "more" bytes more or less than before; "collect" has the guest say
        what is free, True to begin and False to stop. None of them changes nothing.
        """
        machine = self._machine()
        resizing = machine.resizing
        size, more, collect = (request.get(key) for key in ("size", "more", "collect"))
        if size is not None:
            resizing.resize_balloon(_bytes(size))
        elif more is not None:
            resizing.inflate_balloon(_bytes(more))
        elif collect is not None:
            (resizing.collect_free_pages if collect is True else resizing.stop_collecting)()
        info = resizing.balloon_info()
        if info is None:
            raise UsageError("the VM has no balloon", hint="start it with --balloon")
        return {**self.info(request), "balloon": info, "memory_resident_bytes": _resident(machine)}

    def memory(self, request: Message) -> Message:
        """Have the guest plug or unplug memory until it has "size" bytes, and say how it stands."""
        machine = self._machine()
        size = request.get("size")
        if size is not None:
            machine.resizing.resize_memory(_bytes(size))
        return {
            **self.info(request),
            "hotplug": machine.resizing.plugged_info(),
            "balloon": machine.resizing.balloon_info(),
            "memory_resident_bytes": _resident(machine),
        }

    def sysrq(self, request: Message) -> Message:
        """Press BREAK and the key "key" on the guest's console, as Linux takes for SysRq."""
        machine, key = self._machine(), request.get("key")
        if not isinstance(key, str) or len(key) != 1 or not key.isascii():
            raise UsageError(f"{str(key)[:40]!r} is no key")
        machine.console.send_break()
        if not machine.console.send(key.encode()):
            raise VmmError("the guest took the break, but has no room for the key")
        return {}


def vcpu_number(request: Message, machine: Machine) -> int | None:
    """The vCPU a request is about, or None for all.

    Raises: UsageError, where there is none of that number.
    """
    number = request.get("vcpu")
    if number is None or (isinstance(number, int) and 0 <= number < machine.plan.vcpus):
        return number
    raise UsageError(f"there is no vCPU {number}: they are 0 to {machine.plan.vcpus - 1}")


def _bytes(number: object) -> int:
    """A number of bytes from a request.

    Raises: UsageError.
    """
    if type(number) is not int or abs(number) >= 1 << 64:
        raise UsageError(f"{str(number)[:40]} is no number of bytes")
    return number


def _resident(machine: Machine) -> int:
    """How much of this machine's memory the guest's takes up."""
    ram = (machine.memory.host_address, machine.memory.size)
    plugged = machine.resizing.plugged_host_range()
    return resident(ram) if plugged is None else resident(ram, plugged)


def _statistics(machine: Machine) -> Message | None:
    """What the guest says of its memory; one that stands still has no say."""
    return machine.resizing.statistics(0.0 if machine.is_paused else PATIENCE_S)


def resident(*ranges: tuple[int, int], maps: Path = Path("/proc/self/smaps")) -> int:
    """How many bytes of ranges of this process's memory, from and how many each, are in RAM.

    Source: Linux, Documentation/filesystems/proc.rst, "/proc/PID/smaps": Rss is without hugetlbfs.
    """
    found = 0
    inside = False
    with maps.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            first = line.split(maxsplit=1)[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(word, 16) for word in first.split("-"))
                inside = any(start < high and low < start + size for start, size in ranges)
            elif inside and first in IN_RAM:
                found += int(line.split()[1]) * 1024
    return found
