"""The commands of gdb's protocol, with a made-up machine; gdb itself talks in tests/guests."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.debugger.points import Kind, Point
from pyvmm.debugger.target import Action, Signal, Stop
from pyvmm.kvm import regs
from tests.debugger.client import BASE, Conversation, MadeUp
from tests.snapshot.sample import ZCR

PC, CPSR, SP, Z0 = 32, 33, 31, 34
VG = Z0 + 32 + 2 + 16 + 1
VERBS = [
    "g", "G", "m", "M", "X", "p", "P", "H", "T", "Z", "z", "vCont;", "vCont?", "qXfer:features:",
    "qXfer:features:read:target.xml:", "qRcmd,", "qThreadExtraInfo,", "?", "c", "s", "C", "S", "k",
    "D", "qSupported", "Qqemu.PhyMemMode:", "qC", "vKill;", "qfThreadInfo", "qOffsets", "vFile:",
]  # fmt: skip


@pytest.fixture
def talk() -> Conversation:
    return Conversation()


def target(talk: Conversation) -> MadeUp:
    assert isinstance(talk.target, MadeUp)
    return talk.target


def description(talk: Conversation) -> ElementTree.Element:
    text = b""
    while True:
        part = talk.ask(f"qXfer:features:read:target.xml:{len(text):x},200")
        text += part[1:]
        if part[:1] == b"l":
            return ElementTree.fromstring(text)


def registers(talk: Conversation) -> dict[str, tuple[int, int]]:
    """Return the numbers and sizes in bits that the description gives registers."""
    found = description(talk).iter("reg")
    return {
        reg.attrib["name"]: (int(reg.attrib["regnum"]), int(reg.attrib["bitsize"])) for reg in found
    }


def test_description_has_gdbs_registers_and_arms_names(talk: Conversation) -> None:
    found = registers(talk)

    assert [found[name][0] for name in ("x0", "sp", "pc", "cpsr", "z0", "vg")] == [
        0, SP, PC, CPSR, Z0, VG,
    ]  # fmt: skip
    assert found["z31"][1] == 256
    assert found["p0"][1] == found["ffr"][1] == 32
    assert found["TCR_EL1"][1] == 64
    assert "CNTVCT_EL0" in found


def test_description_has_no_vectors_of_sve_without_sve() -> None:
    machine = MadeUp()
    machine.vls = frozenset()
    for cpu in machine.cpus:
        for n in range(32):
            cpu.set_one_reg(regs.V(n), n)

    found = registers(Conversation(machine))

    assert found["v31"][1] == 128
    assert "z0" not in found
    assert "vg" not in found


def test_description_follows_the_vector_length(talk: Conversation) -> None:
    for cpu in target(talk).cpus:
        cpu.set_one_reg(ZCR, 0)

    assert registers(talk)["z0"][1] == 128


def test_stop_says_that_the_vector_length_has_changed(talk: Conversation) -> None:
    talk.replies("c")
    target(talk).cpus[0].set_one_reg(ZCR, 0)
    talk.session.stopped(Stop(0, Signal.TRAP))

    said, stop = talk.taken()

    assert said is not None
    assert b"is 128 bits now" in bytes.fromhex(said[1:].decode())
    assert stop is not None
    assert f"{VG:x}:0200000000000000;".encode() in stop


def test_registers_have_the_bits_of_the_length_in_use(talk: Conversation) -> None:
    target(talk).cpus[0].set_one_reg(ZCR, 0)

    assert talk.ask(f"p{Z0:x}") == b"01" * 16 + b"00" * 16
    everything = bytes.fromhex(talk.ask("g").decode())
    assert everything[PC * 8 : PC * 8 + 8] == (0x8008_0000).to_bytes(8, "little")
    assert len(everything) == 33 * 8 + 4 + 32 * 32 + 8 + 17 * 4 + 8


def test_lldb_gets_vectors_of_the_length_in_use_without_a_note(talk: Conversation) -> None:
    talk.ask("qHostInfo")
    talk.replies("c")
    target(talk).cpus[0].set_one_reg(ZCR, 0)

    talk.session.stopped(Stop(0, Signal.TRAP))

    (stop,) = talk.taken()
    assert stop is not None
    assert stop.startswith(b"T05")
    assert talk.ask(f"p{Z0:x}") == b"01" * 16
    assert talk.ask(f"P{Z0:x}={'ab' * 16}") == b"OK"
    assert talk.ask(f"p{Z0:x}") == b"ab" * 16
    everything = bytes.fromhex(talk.ask("g").decode())
    assert len(everything) == 33 * 8 + 4 + 32 * 16 + 8 + 17 * 2 + 8


def test_write_of_a_vector_keeps_the_bits_beyond_the_length(talk: Conversation) -> None:
    cpu = target(talk).cpus[0]
    cpu.set_one_reg(ZCR, 0)

    assert talk.ask(f"P{Z0:x}={'ab' * 32}") == b"OK"

    assert cpu.get_one_reg(regs.Z(0)).to_bytes(32, "little") == b"\xab" * 16 + b"\x01" * 16


def test_write_of_a_register_reaches_the_chosen_vcpu(talk: Conversation) -> None:
    assert talk.ask("Hg2") == b"OK"
    assert talk.ask("P1=efcdab8967452301") == b"OK"

    assert target(talk).cpus[1].get_one_reg(regs.X(1)) == 0x0123_4567_89AB_CDEF
    assert target(talk).cpus[0].get_one_reg(regs.X(1)) != 0x0123_4567_89AB_CDEF


def test_stack_pointer_is_that_of_the_exception_level(talk: Conversation) -> None:
    cpu = target(talk).cpus[0]
    assert talk.ask(f"p{SP:x}") == (0x8000_8000).to_bytes(8, "little").hex().encode()

    assert talk.ask(f"P{SP:x}=1000000000000000") == b"OK"

    assert cpu.get_one_reg(regs.SP_EL1) == 0x10


@pytest.mark.parametrize("packet", [f"P{VG:x}=0000000000000000", "P1=00", "P1", "P1=zz", "pfff",
                                    "Gzz", "p", "P"])  # fmt: skip
def test_wrong_register_packets_are_errors(talk: Conversation, packet: str) -> None:
    assert talk.ask(packet)[:1] == b"E"


def test_memory_is_read_and_written_by_text_and_binary(talk: Conversation) -> None:
    assert talk.ask(f"M{BASE:x},4:01020304") == b"OK"
    assert talk.ask(f"X{BASE + 4:x},3:".encode() + b"$#}") == b"OK"

    assert talk.ask(f"m{BASE:x},7") == b"01020304" + b"$#}".hex().encode()


def test_read_ends_where_memory_ends(talk: Conversation) -> None:
    assert talk.ask(f"m{BASE + 0xFFFC:x},100") == b"0000000000"[:8]
    assert talk.ask(f"m{BASE + 0x10000:x},1") == b"E0e"


@pytest.mark.parametrize("packet", [
    "m", "m1", "mzz,1", f"m{BASE:x},ffffffffffffffff1", "M0,1", "M0,2:00", f"X{BASE:x},2:a",
    "m-1,4", "m 1,4",
])  # fmt: skip
def test_wrong_memory_packets_are_errors(talk: Conversation, packet: str) -> None:
    assert talk.ask(packet)[:1] == b"E"


def test_read_of_a_huge_length_is_cut(talk: Conversation) -> None:
    assert len(talk.ask(f"m{BASE:x},ffffffffffffffff")) <= 0x10000


def test_physical_addresses_are_chosen_as_in_qemu(talk: Conversation) -> None:
    assert talk.ask("Qqemu.PhyMemMode:1") == b"OK"
    assert talk.ask("qqemu.PhyMemMode") == b"1"
    assert talk.ask("Qqemu.PhyMemMode:2") == b"E01"


def test_threads_are_vcpus(talk: Conversation) -> None:
    assert talk.ask("qfThreadInfo") == b"m1,2"
    assert talk.ask("qsThreadInfo") == b"l"
    assert bytes.fromhex(talk.ask("qThreadExtraInfo,2").decode()) == b"vCPU 1"
    assert (talk.ask("T2"), talk.ask("T3"), talk.ask("Hg3")) == (b"OK", b"E01", b"E01")


@pytest.mark.parametrize(
    ("packet", "actions"),
    [
        ("c", {0: Action.CONTINUE, 1: Action.CONTINUE}),
        ("s", {0: Action.STEP}),
        ("vCont;c", {0: Action.CONTINUE, 1: Action.CONTINUE}),
        ("vCont;s:2", {1: Action.STEP}),
        ("vCont;s:p1.2;c:p1.-1", {0: Action.CONTINUE, 1: Action.STEP}),
        ("vCont;C05:1", {0: Action.CONTINUE}),
    ],
)
def test_resume_gives_each_vcpu_its_action(
    talk: Conversation, packet: str, actions: dict[int, Action]
) -> None:
    assert talk.replies(packet) == []

    assert target(talk).asked == [actions]


def test_stop_reports_the_vcpu_and_the_reason(talk: Conversation) -> None:
    talk.replies("c")
    talk.session.stopped(Stop(1, Signal.TRAP, "watch:80001000"))

    (stop,) = talk.taken()

    assert stop is not None
    assert stop.startswith(b"T05thread:2;watch:80001000;")
    assert talk.ask("?") == stop
    assert talk.ask("qC") == b"QC2"


def test_requests_while_the_machine_runs_are_ignored_but_for_an_interrupt(
    talk: Conversation,
) -> None:
    talk.replies("c")

    assert talk.replies("g") == []
    talk.session.feed(b"\x03")
    assert target(talk).asked[-1] == "interrupt"


@pytest.mark.parametrize("number", range(5))
def test_points_are_inserted_and_removed(talk: Conversation, number: int) -> None:
    point = Point(Kind(number), 0x8000_1000, 4)

    assert talk.ask(f"Z{number},80001000,4") == b"OK"
    assert talk.ask(f"z{number},80001000,4") == b"OK"

    assert target(talk).asked == [point, ("remove", point)]


def test_points_that_cannot_be_are_errors(talk: Conversation) -> None:
    assert talk.ask("Z2,80001000,100") == b"E0e"
    assert talk.ask("Z0,80001000") == b"E01"
    assert talk.ask("Z7,80001000,4") == b""


def test_monitor_prints_lines_and_errors(talk: Conversation) -> None:
    line, ok = talk.replies("qRcmd," + b"hello".hex())
    assert line is not None
    assert (bytes.fromhex(line[1:].decode()), ok) == (b"world\n", b"OK")

    wrong, ok = talk.replies("qRcmd," + b"bye".hex())
    assert wrong is not None
    assert b"no such command" in bytes.fromhex(wrong[1:].decode())


@pytest.mark.parametrize("packet", ["D", "D;1", "k", "vKill;1"])
def test_detach_and_kill_end_the_conversation_once(talk: Conversation, packet: str) -> None:
    assert talk.ask(packet) == b"OK"
    talk.session.close()
    assert talk.replies("g") == []

    assert target(talk).asked == ["detach"]


def test_end_of_the_connection_detaches(talk: Conversation) -> None:
    talk.session.close()
    talk.session.close()

    assert target(talk).asked == ["detach"]


def test_end_of_the_machine_reports_its_exit_code(talk: Conversation) -> None:
    talk.replies("c")
    talk.session.ended(7)

    assert talk.taken() == [b"W07"]


def test_damaged_packet_is_asked_for_again_while_packets_are_acknowledged() -> None:
    sent = bytearray()
    from pyvmm.debugger.protocol import Session

    session = Session(MadeUp(), sent.extend)

    session.feed(b"$g#00")
    assert sent == b"-"


def packets() -> st.SearchStrategy[bytes]:
    numbers = st.integers(0, 1 << 70).map(lambda number: f"{number:x}")
    texts = st.text("0123456789abcdef,:;=.-p", max_size=30)
    arguments = st.lists(st.one_of(numbers, texts), max_size=4).map(",".join)
    made = st.tuples(st.sampled_from(VERBS), arguments).map("".join).map(str.encode)
    return st.one_of(made, st.binary(max_size=80))


@given(st.lists(packets(), max_size=20), st.binary(max_size=20))
def test_no_client_makes_the_session_fail(sent: list[bytes], noise: bytes) -> None:
    talk = Conversation()
    for packet in sent:
        talk.replies(packet)
        talk.session.feed(noise)
        talk.session.stopped(Stop(0, Signal.TRAP))
        assert len(talk.sent) < 1 << 20
        talk.sent.clear()
    talk.session.close()
    check: Any = target(talk).asked
    assert check.count("detach") == 1
