"""The emulated host's QEMU: its command line, and the detection of its end."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host import qemu, saved
from pyvmm.host.parts.tools import Tool
from pyvmm.host.qemu import QemuPlan
from pyvmm.host.wire import FIRST_PORTS
from tests.host.conftest import ENOUGH_S, wait_for

HERE = Path("/cache/host")


def plan(cpu: str = "max", version: str = "7.2.22", usr: str = "/cache/usr.erofs") -> QemuPlan:
    return QemuPlan(Tool(("qemu",)), version, cpu, Path("/cache/Image"), Path(usr))


def option(arguments: list[str], name: str) -> list[str]:
    """Return the values of an option."""
    return [value for flag, value in pairwise(arguments) if flag == name]


@pytest.mark.parametrize(
    ("cpu", "version", "argument"),
    [
        ("max", "7.2.22", "max,pauth-impdef=on,sme=off,lpa2=off"),
        ("max,sve384=off", "10.0.13", "max,sve384=off,pauth-impdef=on,sme=off"),
        ("max,sme=on", "7.2.22", "max,sme=on,pauth-impdef=on,lpa2=off"),
        ("max,pauth-impdef=off,sme=on,lpa2=on", "7.2.22", "max,pauth-impdef=off,sme=on,lpa2=on"),
        ("max", "7.0.0", "max,pauth-impdef=on,lpa2=off"),  # knows no SME
        ("max", "6.2.0", "max,pauth-impdef=on"),
        ("max,sve2048=on", "5.2.0", "max,sve2048=on"),  # knows neither
        ("cortex-a57", "7.2.22", "cortex-a57"),
        ("max", "11.0.0-rc1", "max,pauth-impdef=on,sme=off"),
    ],
)
def test_cpu_argument_adds_the_properties_that_the_version_knows(
    cpu: str, version: str, argument: str
) -> None:
    assert plan(cpu, version).cpu_argument == argument


@pytest.mark.parametrize(("keep_memory", "share"), [(True, "on"), (False, "off")])
def test_memory_is_shared_only_by_the_boot_that_is_saved(keep_memory: bool, share: str) -> None:
    arguments = plan().machine(HERE / "memory", HERE / "run", keep_memory=keep_memory)

    (memory,) = option(arguments, "-object")
    size = saved.memory_size()
    assert memory == (
        f"memory-backend-file,id=mem,size={size},mem-path=/cache/host/memory,share={share}"
    )


def test_both_kinds_of_start_have_the_same_other_arguments() -> None:
    cold = plan().machine(HERE / "memory", HERE / "run", keep_memory=True)
    warm = plan().machine(HERE / "memory", HERE / "run", keep_memory=False)

    different = [pair for pair in zip(cold, warm, strict=True) if pair[0] != pair[1]]
    assert len(different) == 1


def test_machine_has_el2_a_gicv3_and_no_network() -> None:
    arguments = plan().machine(HERE / "memory", HERE / "run", keep_memory=False)

    assert option(arguments, "-M") == ["virt,virtualization=on,gic-version=3,memory-backend=mem"]
    assert option(arguments, "-nic") == ["none"]
    assert int(option(arguments, "-smp")[0]) <= min(os.cpu_count() or 1, 4)


@pytest.mark.parametrize(
    ("properties", "argument"),
    [
        ("gic-version=2", "virt,virtualization=on,gic-version=2,memory-backend=mem"),
        ("mte=on", "virt,virtualization=on,gic-version=3,memory-backend=mem,mte=on"),
    ],
)
def test_machine_takes_the_users_properties(properties: str, argument: str) -> None:
    chosen = plan().replace(properties=properties)

    arguments = chosen.machine(HERE / "memory", HERE / "run", keep_memory=False)

    assert option(arguments, "-M") == [argument]


def test_machine_has_qemus_sandbox_only_if_the_plan_has_it() -> None:
    without = plan().machine(HERE / "memory", HERE / "run", keep_memory=False)
    sandboxed = plan().replace(sandbox=True)

    arguments = sandboxed.machine(HERE / "memory", HERE / "run", keep_memory=False)

    assert option(without, "-sandbox") == []
    (words,) = option(arguments, "-sandbox")
    assert words.split(",")[0] == "on"
    assert "spawn=deny" in words


@pytest.mark.parametrize(("code", "expected"), [(0, True), (1, False)])
def test_has_sandbox_is_whether_qemu_accepts_the_option(code: int, expected: bool) -> None:
    tool = program(f"sys.exit({code} if sys.argv[1] == '-sandbox' else 2)")

    assert qemu.has_sandbox(tool) is expected


def test_each_session_has_its_own_port() -> None:
    arguments = plan().machine(HERE / "memory", HERE / "run", keep_memory=False)

    chardevs = [c for c in option(arguments, "-chardev") if c.startswith("socket,")]
    ports = [d for d in option(arguments, "-device") if d.startswith("virtserialport,")]
    assert len(chardevs) == len(ports) == FIRST_PORTS
    assert f"path=/cache/host/run/p{FIRST_PORTS}," in chardevs[-1]
    assert ports[-1].endswith(f"name=pyvmm.{FIRST_PORTS},nr={FIRST_PORTS}")


def test_commas_in_paths_are_doubled_where_qemu_splits_at_them() -> None:
    odd = Path("/my,files")

    arguments = plan(usr="/my,files/usr.erofs").machine(odd / "m", odd / "run", keep_memory=False)

    assert "mem-path=/my,,files/m,share=off" in option(arguments, "-object")[0]
    assert "file=/my,,files/usr.erofs" in option(arguments, "-drive")[0]
    assert option(arguments, "-qmp") == ["unix:/my,,files/run/qmp,server=on,wait=off"]
    assert "path=/my,,files/run/p1,server=on" in option(arguments, "-chardev")[0]
    assert option(arguments, "-serial") == ["file:/my,files/run/console.log"]  # taken whole


def test_version_is_a_tuple_of_its_numbers() -> None:
    assert qemu.version_tuple("7.2.22") == (7, 2, 22)
    assert qemu.version_tuple("10.0.13") > qemu.version_tuple("7.2.22")


def sockets(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def program(code: str) -> Tool:
    return Tool((sys.executable, "-c", f"import sys, time; {code}"), {"MARK": "here"})


def test_launch_passes_the_lock_and_environment_and_makes_a_log(tmp_path: Path) -> None:
    run = sockets(tmp_path)
    reader, writer = os.pipe()
    code = "import os; os.write(int(sys.argv[1]), os.environ['MARK'].encode()); sys.exit('words')"

    pid = qemu.launch(program(code), [str(writer)], run, [writer])

    wait_for(lambda: qemu.ended(pid), "its end")
    assert os.read(reader, 10) == b"here"
    assert (run / "qemu.log").read_text() == "words\n"
    assert (run / "pid").read_text() == f"{pid}\n"
    assert "MARK" in (run / "command").read_text()
    os.close(reader)
    os.close(writer)


def test_wait_for_line_returns_when_the_console_shows_it(tmp_path: Path) -> None:
    run = sockets(tmp_path)
    code = f"time.sleep(0.2); open('{run}/console.log', 'w').write('x ready y'); time.sleep(600)"

    pid = qemu.launch(program(code), [], run, [])

    qemu.wait_for_line(run, "ready", pid, ENOUGH_S)
    assert not qemu.ended(pid)
    os.kill(pid, 9)
    wait_for(lambda: qemu.ended(pid), "its end")


def test_wait_for_line_quotes_a_program_that_ends(tmp_path: Path) -> None:
    run = sockets(tmp_path)

    pid = qemu.launch(program("sys.exit('unable to find CPU model')"), [], run, [])

    with pytest.raises(HostError, match="ended while it booted: unable to find CPU model"):
        qemu.wait_for_line(run, "ready", pid, ENOUGH_S)


def test_wait_for_line_gives_up_at_the_timeout(tmp_path: Path) -> None:
    run = sockets(tmp_path)
    pid = qemu.launch(program("print('Panic!', flush=True); time.sleep(600)"), [], run, [])
    wait_for((run / "qemu.log").read_text, "its output")

    with pytest.raises(HostError, match=r"did not boot in 0 s: Panic!"):
        qemu.wait_for_line(run, "ready", pid, 0.1)

    os.kill(pid, 9)
    wait_for(lambda: qemu.ended(pid), "its end")


def test_save_reports_a_failed_qmp_connection(tmp_path: Path) -> None:
    run = sockets(tmp_path)
    (run / "qemu.log").write_text("qemu: bad luck\n")

    with pytest.raises(HostError, match=r"a QMP command to QEMU failed: .*bad luck"):
        qemu.restore(run, tmp_path / "state")
