"""The choice of VMs by -n and -a, and their replies, with fake VMs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pyvmm.commands.vms import _running
from pyvmm.commands.vms._running import Found, Vm, VmHost, ask_all, chosen
from pyvmm.commands.vms.debug import show_devices
from pyvmm.commands.vms.list import lines as list_lines
from pyvmm.commands.vms.stat import _look
from pyvmm.commands.vms.stat import lines as stat_lines
from pyvmm.control.wire import Message
from pyvmm.devices.virtio.rng import VirtioRng
from pyvmm.errors import HostError, UsageError
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import RAM_SIZE, Buffer
from tests.devices.virtio.rig import DeviceRig

HERE = VmHost(None)


class Elsewhere(VmHost):
    """A fake emulated host."""

    @property
    def name(self) -> str:
        return "6.1-7.2-0123"


INFO = {"ok": True, "state": "running", "pid": 7, "vcpus": 2, "memory_bytes": 64 << 20,
        "sve_vls": [128, 256]}  # fmt: skip


def vm(name: str, place: VmHost = HERE) -> Vm:
    return Vm(place, {**INFO, "name": name})


@pytest.fixture(autouse=True)
def two_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    vms = [vm("one"), vm("two"), vm("two", Elsewhere(None))]
    monkeypatch.setattr(_running, "all_vms", lambda label: Found(vms))


def test_name_chooses_the_vm_of_that_name() -> None:
    assert [found.name for found in chosen("one", False).vms] == ["one"]


def test_name_of_two_vms_is_refused_with_their_full_names() -> None:
    with pytest.raises(UsageError, match="2 VMs are called two") as caught:
        chosen("two", False)

    assert caught.value.hint == "give -n local/two or 6.1-7.2-0123/two"


@pytest.mark.parametrize("place", ["local", "6.1-7.2-0123"])
def test_name_with_its_place_chooses_one_of_two(place: str) -> None:
    (found,) = chosen(f"{place}/two", False).vms

    assert found.place.label == place


def test_list_has_a_row_for_a_vm_that_does_not_answer() -> None:
    deaf = Vm(HERE, {"ok": False, "name": "deaf", "state": "not answering", "error": "?"})

    shown = list(list_lines([vm("one"), deaf]))

    assert shown == [
        "NAME  STATE          PID  VCPUS  MEMORY  SVE      HOST",
        "one   running        7    2      64 MiB  128,256  local",
        "deaf  not answering                               local",
    ]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as ram:
        yield ram


def device(**counts: int) -> dict[str, Any]:
    named = {"region": "virtio0", "device": "virtio-blk", "backing": "root.img"}
    return {**named, "counts": counts}


def test_stat_shows_counts_largest_first_and_rates_since_the_last_look() -> None:
    reply = {**INFO, "name": "one", "uptime_s": 10.0, "memory_resident_bytes": 3 << 20,
             "exits": {"uart0 read": 5, "uart0 write": 300, "INTR": 0}, "kvm": {},
             "devices": [device(bytes_read=4096)]}  # fmt: skip
    before = {**reply, "uptime_s": 8.0, "exits": {"uart0 write": 100},
              "devices": [device(bytes_read=1096)]}  # fmt: skip

    shown = list(stat_lines(reply, before))

    assert shown == [
        "one  running, up 10.0 s, 2 vCPUs, 64 MiB of memory, 3.0 MiB of it in use",
        "  exits to pyvmm           305",
        "    uart0 write            300         100/s",
        "    uart0 read               5           2/s",
        "  virtio0 virtio-blk root.img",
        "    bytes read                  4096        1500/s",
    ]


class Told(Elsewhere):
    """A host that gives these replies, then has ended."""

    answers: list[Message]

    def ask(self, questions: Sequence[Message], needs: object = None) -> list[Message]:
        if not self.answers:
            raise HostError("it has ended")
        return [self.answers.pop(0) for _ in questions]


def told(*answers: Message) -> Told:
    return Told(None, list(answers))


def test_host_that_has_ended_is_the_reply_of_its_vms() -> None:
    reply = vm("two", told()).ask({"do": "stop"})

    assert (reply["ok"], reply["name"], reply["error"]) == (False, "two", "it has ended")
    assert reply["exit_code"] == 3


def test_vms_are_asked_in_parallel_and_replies_are_in_order() -> None:
    class Slow(Told):
        def ask(self, questions: Sequence[Message], needs: object = None) -> list[Message]:
            together.wait(120)  # broken if one is asked after the other
            return super().ask(questions)

    def slow(*answers: Message) -> Slow:
        return Slow(None, list(answers))

    together = threading.Barrier(3)
    one, other, gone = slow({"ok": True, "n": 1}, {"ok": True, "n": 3}), slow({"ok": True}), slow()
    vms = [vm("a", one), vm("b", gone), vm("c", one), vm("d", other), vm("e", gone)]

    replies = ask_all(vms, {"do": "stat"})

    assert [reply["name"] for reply in replies] == ["a", "b", "c", "d", "e"]
    assert [reply["ok"] for reply in replies] == [True, False, True, True, False]
    assert [reply.get("n") for reply in replies] == [1, None, 3, None, None]


def test_stat_watches_both_vms_of_one_name_until_they_end() -> None:
    first, second = {**INFO, "pid": 1}, {**INFO, "pid": 2}
    here, there = vm("two", told(first)), vm("two", told(second, second))

    looked = _look([(here, None), (there, None)])
    again = _look([(vm, now) for vm, _, now in looked])

    assert [(before, now["pid"]) for _, before, now in looked] == [(None, 1), (None, 2)]
    assert [(before["pid"], now["pid"]) for _, before, now in again if before] == [(2, 2)]
    assert _look([(vm, now) for vm, _, now in again]) == []


def test_debug_shows_a_device_and_its_queues(memory: GuestMemory) -> None:
    rig = DeviceRig(memory, VirtioRng)
    rig.driver.start(queues=1)
    address = rig.driver.ram.take(64)
    rig.do(Buffer(address, 64, True))

    shown = list(show_devices([{"region": "virtio3", **rig.device.describe()}]))
    rig.device.stop()

    ring = rig.driver.rings[0]
    assert shown == [
        "virtio3 virtio-rng",
        "  status   ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK",
        "  features RING_F_INDIRECT_DESC RING_F_EVENT_IDX F_VERSION_1",
        "  counts   requests=1 bytes=64",
        f"  queue    requestq: 64 entries, descriptors {ring.desc:#x}, available {ring.avail:#x} "
        f"at 1, taken to 1, used {ring.used:#x} at 1",
    ]
    assert list(show_devices([])) == ["no virtio devices"]
