"""The verbs of a running VM's control socket."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyvmm.base.paths import check_path
from pyvmm.control.server import Handler
from pyvmm.control.wire import SCHEMA, Message
from pyvmm.errors import GuestError, HostError, UsageError, VmmError
from pyvmm.machine.counts import totals
from pyvmm.machine.machine import Machine
from pyvmm.machine.resizing import STATISTICS_S
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.save import save

if TYPE_CHECKING:
    from pyvmm.arm64.translation import Read
    from pyvmm.debugger.corefile import Piece
    from pyvmm.debugger.server import DebugServer
    from pyvmm.machine.vcpus import MachineVcpu

VERBS: Final = (
    "info", "stop", "pause", "resume", "save", "stat", "registers", "devices", "sysrq", "balloon",
    "memory", "translate", "page-tables", "gdb", "dump", "backtrace", "names",
)  # fmt: skip
BLOCK: Final = 512  # bytes, of st_blocks.  Source: stat(3type)
IN_RAM: Final = ("Rss:", "Shared_Hugetlb:", "Private_Hugetlb:")


class Service:
    """The request handlers of a VM.

    ``machine`` returns the machine, which a reboot replaces. ``stop`` ends the VM. ``since`` is the
    monotonic time of its start. ``debugger`` returns the server of debuggers.
    """

    def __init__(
        self,
        machine: Callable[[], Machine],
        stop: Callable[[], None],
        since: float,
        debugger: Callable[[], DebugServer] | None = None,
    ) -> None:
        self._machine = machine
        self._stop = stop
        self._since = since
        self._debugger = debugger

    @property
    def handlers(self) -> dict[str, Handler]:
        """The handlers, by verb."""
        return {verb: getattr(self, verb.replace("-", "_")) for verb in VERBS}

    def info(self, request: Message) -> Message:
        """Describe the VM."""
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
        """Pause every vCPU; no time passes for the guest until it is resumed."""
        machine = self._machine()
        before = machine.is_paused
        machine.pause()
        return {"was_paused": before}

    def resume(self, request: Message) -> Message:
        """Resume the vCPUs."""
        machine = self._machine()
        before = machine.is_paused
        if machine.holder:
            raise UsageError(
                f"{machine.holder} has stopped the VM", hint="continue or detach in the debugger"
            )
        machine.resume()
        return {"was_paused": before}

    def save(self, request: Message) -> Message:
        """Write a snapshot to the descriptor that comes with the request, for the path "file".

        The VM then continues if "resume" is true. Else it stays paused until the client, which
        gives the file its name, sends "stop". If the client disconnects first, it continues.

        "parents" are the paths of a snapshot and its parents; their descriptors follow. Then only
        changes since that snapshot are written. With "track" KVM tracks changes from now on.
        """
        machine, peer = self._machine(), request["peer"]
        file, parents = request.get("file"), request.get("parents", [])
        texts = isinstance(parents, list) and all(isinstance(path, str) for path in parents)
        if not isinstance(file, str) or not texts:
            raise UsageError("the request names no file to save to")
        check_path(Path(file), "the file")
        for path in parents:
            check_path(Path(path), "`parent`")
        if len(peer.fds) != 1 + len(parents):
            raise UsageError("the request lacks the descriptors of its files")
        if machine.breakpoints:
            raise UsageError(
                f"a debugger has {machine.breakpoints} breakpoints in the guest's memory",
                hint="stop the guest in the debugger first",
            )
        fd, *fds = peer.fds
        begin = time.monotonic()
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as resuming:
            if not machine.is_paused:
                machine.pause()
                resuming.callback(_resume, machine)
            parent = None
            if fds:
                del peer.fds[1:]
                chain = list(zip(map(Path, parents), fds, strict=True))
                parent = undo.enter_context(SnapshotFile.of_chain(chain))
            track = request.get("track") is True
            saved = save(machine, Path(file), parent=parent, track=track, fd=fd)
            if request.get("resume") is not True:  # no instruction runs between this and "stop"
                peer.on_close = resuming.pop_all().close
        return {
            "file": file,
            "identity": saved.identity,
            "bytes_on_disk": os.fstat(fd).st_blocks * BLOCK,
            "seconds": round(time.monotonic() - begin, 3),
            "warnings": list(saved.warnings),
        }

    def stat(self, request: Message) -> Message:
        """Return every vCPU's exits, as pyvmm and as KVM count them, and the memory in use.

        "sent_without_exit" counts the bytes that UARTs sent without an exit to Python.
        """
        machine = self._machine()
        age_s = 0.0 if machine.is_paused else STATISTICS_S  # a paused guest sends no new ones
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
            "guest_memory": machine.resizing.statistics(age_s),
            "devices": [
                {key: device[key] for key in ("region", "device", "backing", "counts")}
                for device in machine.devices()
            ],
        }

    def devices(self, request: Message) -> Message:
        """Describe every virtio device: status, features, configuration, queues, counts."""
        return {"devices": self._machine().devices()}

    def registers(self, request: Message) -> Message:
        """Return the registers of one vCPU, "vcpu", or of all; the VM is paused meanwhile.

        With "whole" Z, P and FFR have the longest length the guest could choose.
        """
        from pyvmm.kvm.vgic import Vgic
        from pyvmm.machine.plan import Feature
        from pyvmm.machine.registerdump import read_registers

        machine = self._machine()
        number, count = request.get("vcpu"), machine.plan.vcpus
        if number is not None and not (isinstance(number, int) and 0 <= number < count):
            raise _no_vcpu(number, count)
        whole = request.get("whole") is True
        gic = machine.board.irqchip.gic
        aarch32 = Feature.AARCH32 in machine.plan.features
        with machine.paused():
            read = [
                read_registers(
                    vcpu,
                    machine.vls,
                    gic=gic if isinstance(gic, Vgic) else None,
                    whole=whole,
                    aarch32=aarch32,
                )
                for vcpu in machine.vcpus
                if number in (None, vcpu.id)
            ]
        exits = machine.counts.exits()
        return {"vcpus": [{**vcpu, "exits": exits[vcpu["vcpu"]]} for vcpu in read]}

    def translate(self, request: Message) -> Message:
        """Return where the virtual address "address" of the vCPU "vcpu" is."""
        from pyvmm.debugger.addresses import translation

        address = _address(request.get("address"))
        with self._addresses(request) as (vcpu, read):
            return translation(vcpu, read, address)

    def backtrace(self, request: Message) -> Message:
        """Return PC and the return addresses of one vCPU, "vcpu", or of all.

        "code" has the instructions around PC.
        """
        from pyvmm.debugger.backtrace import call_chain
        from pyvmm.debugger.disassembly import code_around

        machine = self._machine()
        memory = machine.board.addressable
        number, count = request.get("vcpu"), machine.plan.vcpus
        if number is not None and not (type(number) is int and 0 <= number < count):
            raise _no_vcpu(number, count)

        def read(gpa: int, size: int) -> bytes:
            return bytes(memory.view(gpa, size))

        with machine.paused():
            chosen = [vcpu for vcpu in machine.vcpus if number in (None, vcpu.id)]
            chains = {vcpu.id: call_chain(vcpu, read) for vcpu in chosen}
            codes = {vcpu.id: code_around(vcpu, read) for vcpu in chosen}
        return {
            "backtraces": {vcpu: [f"{at:#x}" for at in chain] for vcpu, chain in chains.items()},
            "code": {vcpu: code.to_json() for vcpu, code in codes.items() if code is not None},
        }

    def names(self, request: Message) -> Message:
        """Return the names that a Linux guest's own symbol table has for "addresses"."""
        from pyvmm.debugger.kallsyms import MOST_ADDRESSES, find_names

        wanted = request.get("addresses")
        if not isinstance(wanted, list) or len(wanted) > MOST_ADDRESSES:
            raise UsageError(f"`addresses`: not a list of at most {MOST_ADDRESSES}")
        addresses = [_address(one) for one in wanted]
        machine = self._machine()
        pieces, read = self._memory()
        with machine.paused():
            found = find_names(pieces, read, machine.vcpus, addresses)
        return {"names": {f"{address:#x}": name for address, name in found.items()}}

    def _memory(self) -> tuple[list[Piece], Read]:
        """Return the pieces of guest memory, and a function that reads them."""
        from pyvmm.debugger.corefile import Piece

        memories = list(self._machine().board.slots.saved.values())

        def read(gpa: int, length: int) -> bytes:
            found = next((one for one in memories if one.contains(gpa, length)), None)
            if found is None:
                raise GuestError(f"{length:#x} bytes at guest address {gpa:#x} are not in memory")
            return found.read(gpa, length)

        return [Piece(one.base, one.size, [(one.base, one.end)]) for one in memories], read

    def page_tables(self, request: Message) -> Message:
        """Return what the page tables of the vCPU "vcpu" map from the address "from" on.

        "next" is where the next request continues, None at the end.
        """
        from pyvmm.debugger.addresses import page_tables

        start = _address(request.get("from", 0))
        with self._addresses(request) as (vcpu, read):
            return page_tables(vcpu, read, start)

    def dump(self, request: Message) -> Message:
        """Write a core file to the descriptor that comes with the request; the VM pauses."""
        from pyvmm.debugger.corefile import write_core
        from pyvmm.snapshot.save import complete_accesses

        machine, peer = self._machine(), request["peer"]
        if len(peer.fds) != 1:
            raise UsageError("the request lacks the descriptor of its file")
        pieces, read = self._memory()
        with machine.paused():
            if machine.has_started and not machine.has_ended:
                complete_accesses(machine.board)
            try:
                core = write_core(peer.fds[0], machine.vcpus, machine.vls, pieces, read)
            except OSError as error:
                raise HostError(f"the core file cannot be written: {error.strerror}") from error
        return {"size": core.size, "has_vmcoreinfo": core.has_vmcoreinfo}

    def gdb(self, request: Message) -> Message:
        """Stop the VM for a debugger: after the reply the connection carries gdb's protocol."""
        if self._debugger is None:
            raise UsageError("this VM accepts no debugger")
        server = self._debugger()
        server.check()
        request["peer"].take_over = server.serve
        return {}

    @contextlib.contextmanager
    def _addresses(self, request: Message) -> Iterator[tuple[MachineVcpu, Read]]:
        """Pause the VM for the block, which gets the request's vCPU and reads guest memory."""
        machine = self._machine()
        number, count = request.get("vcpu", 0), machine.plan.vcpus
        if type(number) is not int or not 0 <= number < count:
            raise _no_vcpu(number, count)
        memory = machine.board.addressable
        with machine.paused():
            yield machine.vcpus[number], lambda gpa, size: bytes(memory.view(gpa, size))

    def balloon(self, request: Message) -> Message:
        """Resize the balloon, and return its state.

        "size" is the new size in bytes, "more" the difference to the last requested size.
        "collect" starts (true) or stops (false) a report of the guest's free pages. Without any
        of them nothing changes.
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
            raise UsageError("the VM has no balloon", hint="start it with `devices.balloon`")
        return {**self.info(request), "balloon": info, "memory_resident_bytes": _resident(machine)}

    def memory(self, request: Message) -> Message:
        """Make the guest plug or unplug memory up to "size" bytes, and return the state."""
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
        """Send a break and the key "key" to the guest's console: SysRq for Linux."""
        machine, key = self._machine(), request.get("key")
        if not isinstance(key, str) or len(key) != 1 or not key.isascii():
            raise UsageError(f"{str(key)[:40]!r} is not a key")
        machine.console.send_break()
        if not machine.console.send(key.encode()):
            raise VmmError("the guest has read the break, but has no room for the key")
        return {}


def _no_vcpu(number: object, count: int) -> UsageError:
    return UsageError(f"there is no vCPU {str(number)[:40]}: they are 0 to {count - 1}")


def _address(number: object) -> int:
    """Check an address from a request.

    Raises: UsageError.
    """
    if type(number) is not int or not 0 <= number < 1 << 64:
        raise UsageError(f"{str(number)[:40]} is not an address")
    return number


def _bytes(number: object) -> int:
    """Check a number of bytes from a request.

    Raises: UsageError.
    """
    if type(number) is not int or abs(number) >= 1 << 64:
        raise UsageError(f"{str(number)[:40]} is not a number of bytes")
    return number


def _resume(machine: Machine) -> None:
    if not machine.has_ended:
        machine.resume()


def _resident(machine: Machine) -> int:
    """Return how many bytes of the host's memory the guest's memory occupies."""
    ram = (machine.memory.host_address, machine.memory.size)
    plugged = machine.resizing.plugged_host_range()
    return resident(ram) if plugged is None else resident(ram, plugged)


def resident(*ranges: tuple[int, int], maps: Path = Path("/proc/self/smaps")) -> int:
    """Return how many bytes of (address, size) ranges of this process are in RAM.

    Source: Linux, Documentation/filesystems/proc.rst, "/proc/PID/smaps": Rss excludes hugetlbfs.
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
