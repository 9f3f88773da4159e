"""`pyvmm sve` on saved probes, and on the host it runs on."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from pyvmm import cli, host
from pyvmm.arm64 import vl
from pyvmm.commands import sve
from pyvmm.commands.sve import _probe as sve_probe
from pyvmm.commands.sve import explain as sve_explain
from pyvmm.commands.sve import list as sve_list
from pyvmm.host.settings import HostSettings
from pyvmm.kvm.sve import host_vector_lengths
from pyvmm.kvm.system import System
from pyvmm.svecheck.probe import Probe

Capture = pytest.CaptureFixture[str]
Save = Callable[..., str]

FULL_512 = frozenset({128, 256, 384, 512})
POWERS = frozenset({128, 256, 512, 1024, 2048})


def probe(vls: frozenset[int]) -> Probe:
    return Probe(
        kernel="Linux 6.12.0", machine="Blade 7", emulated=False, midrs=(0x410F_D4F0,),
        vls=vls, prctl=vls, rdvl=vls,
    )  # fmt: skip


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Save the probe of a host with these lengths in the current directory; return its name."""
    monkeypatch.chdir(tmp_path)

    def saved(name: str, *lengths: int) -> str:
        probe(frozenset(lengths)).write(Path(name))
        return name

    return saved


def ask(capsys: Capture, *arguments: str) -> tuple[int, Any]:
    """Run a command; return its exit code and its JSON document."""
    code = cli.main(["sve", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_help_lists_every_command_with_its_own_first_line(capsys: Capture) -> None:
    cli.main(["sve", "--help"])
    shown = capsys.readouterr().out

    for name, verb in sve.COMMANDS.items():
        command = sve.sve.get_command(click.Context(sve.sve), name)
        assert command is not None
        assert command.get_short_help_str(80) == verb.summary
        assert f"{name} " in shown


def test_explain_shows_a_guests_lengths_for_a_set_that_works(save: Save, capsys: Capture) -> None:
    code = cli.main(["sve", "explain", "128,256,512", "--on", save("a.json", *POWERS)])

    assert code == 0
    assert capsys.readouterr().out == (
        "128,256,512 works on a.json\n"
        "  host     Blade 7, Linux 6.12.0\n"
        "  has      128,256,512,1024,2048\n"
        "a guest with 128,256,512:\n"
        "  ZCR_EL1.LEN  allows up to     vector length\n"
        "  0            128              128\n"
        "  1 to 2       256 to 384       256\n"
        "  3 to 15      512 to 2048      512\n"
    )


def test_explain_shows_the_reason_and_the_nearest_sets_for_a_set_that_does_not_work(
    save: Save, capsys: Capture
) -> None:
    code = cli.main(["sve", "explain", "128,512", "--on", save("a.json", *POWERS)])

    assert code == 1
    assert capsys.readouterr().out == (
        "128,512 does not work on a.json\n"
        "  host     Blade 7, Linux 6.12.0\n"
        "  has      128,256,512,1024,2048\n"
        "  why not  KVM wants every length the host has below the largest asked for, "
        "and 256 is left out\n"
        "  nearest  128 or 128,256,512\n"
    )


def test_explain_checks_a_set_on_every_probe(save: Save, capsys: Capture) -> None:
    files = [save("a.json", *POWERS), save("b.json", *FULL_512), save("c.json")]

    code, document = ask(capsys, "explain", "128,256,512", "--on", *files)

    assert code == 1
    assert (document["works"], document["set"]) == (False, [128, 256, 512])
    told = [(host["name"], host["works"], host["reason"]) for host in document["hosts"]]
    assert told[0] == ("a.json", True, None)
    assert told[1][:2] == ("b.json", False)
    assert "384 is left out" in told[1][2]
    assert told[2] == ("c.json", False, "the host has no SVE")
    assert document["hosts"][1]["nearest"] == [[128, 256], [128, 256, 384, 512]]
    assert document["hosts"][2]["nearest"] == []
    assert document["vl_by_zcr_el1_len"] == [128, 256, 256] + [512] * 13


def test_explain_shows_no_guest_for_a_set_that_works_nowhere(save: Save, capsys: Capture) -> None:
    code, document = ask(capsys, "explain", "256", "--on", save("a.json", *POWERS))

    assert code == 1
    assert document["vl_by_zcr_el1_len"] is None


@pytest.mark.parametrize(
    "order", ["128 --on a.json b.json", "128 --on a.json --on b.json", "--on a.json 128 b.json"]
)
def test_probes_are_the_arguments_beside_the_set(order: str, save: Save, capsys: Capture) -> None:
    save("a.json", 128)
    save("b.json", 128, 256)

    code, document = ask(capsys, "explain", *order.split())

    assert code == 0
    assert [host["name"] for host in document["hosts"]] == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("1,2 --on a.json", "kvmtool's old 128-bit units and would be 128,256"),
        ("16,32 --on a.json", "bytes, as prctl and vlset take them, and would be 128,256"),
        ("4096 --on a.json", "4096 is longer than SVE's longest"),
        ("128 256", "256: one set at a time"),
        ("128 --on missing.json", "missing.json: cannot be read: No such file"),
        ("128 --on a.json a.json", "a.json: the probe is given twice"),
        ("128 --on cut.json", "cut.json: not JSON, or incomplete"),
        ("128 --on list.json", "list.json: this JSON is not the probe of a host"),
        ("128 --on later.json", "later.json: its schema is 9"),
        ("128 --on units.json", "units.json: sve.kvm: 1,2: lengths are in bits"),
    ],
)
def test_bad_input_gets_one_message_and_exits_with_2(
    words: str, said: str, save: Save, capsys: Capture
) -> None:
    text = Path(save("a.json", 128)).read_text()
    Path("cut.json").write_text(text[:-40])
    Path("list.json").write_text('{"schema": 1, "vms": []}')
    Path("later.json").write_text(text.replace('"schema": 1', '"schema": 9'))
    Path("units.json").write_text(text.replace("128", "1,2"))

    code = cli.main(["sve", "explain", *words.split()])
    out, err = capsys.readouterr()

    assert (code, out) == (2, "")
    assert said in err
    assert re.fullmatch(r"pyvmm: .*\n(  hint: .*\n)?", err)


def test_explain_without_probes_checks_this_host(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sve_explain, "run_here_or_forward", lambda where: None)
    monkeypatch.setattr(sve_explain, "probe_here", lambda: probe(FULL_512))

    code, document = ask(capsys, "explain", "128,256")

    assert code == 0
    assert document["hosts"][0]["name"] == "this host"


def test_host_that_cannot_be_used_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr("pyvmm.host.machine", lambda: "riscv64")
    monkeypatch.delenv(host.INSIDE_VARIABLE, raising=False)

    codes = [
        cli.main(["sve", *words, "--host", "local"]) for words in (["list"], ["explain", "128"])
    ]

    assert codes == [3, 3]
    assert "riscv64" in capsys.readouterr().err


def test_common_sets_are_those_that_each_host_can_give(save: Save, capsys: Capture) -> None:
    code = cli.main(["sve", "common", save("a.json", *POWERS), save("big.json", *FULL_512)])

    assert code == 0
    assert capsys.readouterr().out == (
        "a.json    128,256,512,1024,2048\n"
        "big.json  128,256,384,512\n"
        "sets that all of them can give:\n"
        "  --sve-vls=128\n"
        "  --sve-vls=128,256\n"
        "no longer set: 384 is in big.json, but not in a.json\n"
    )


def test_common_exits_with_1_where_hosts_share_no_set(save: Save, capsys: Capture) -> None:
    code, document = ask(capsys, "common", save("a.json", 128, 256), save("none.json"))

    assert code == 1
    assert document["sets"] == []
    assert document["why_no_more"] == "no set: 128 is in a.json, but not in none.json"


def test_equal_hosts_have_all_sets_in_common(save: Save, capsys: Capture) -> None:
    code, document = ask(capsys, "common", save("a.json", 128, 256), save("b.json", 128, 256))

    assert code == 0
    assert document["sets"] == [[128], [128, 256]]
    assert document["why_no_more"] is None


def test_common_without_probes_is_a_usage_error(capsys: Capture) -> None:
    assert cli.main(["sve", "common"]) == 2
    assert "Missing argument" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["explain 128,256 --on a.json", "common a.json"])
def test_saved_probes_need_no_kvm_and_no_host(words: str, save: Save) -> None:
    save("a.json", *POWERS)
    code = (
        "import sys; from pyvmm.cli import main; code = main(['sve', *sys.argv[1:]]);"
        "print(code, [m for m in sys.modules if m.startswith('pyvmm.kvm')"
        " or m in ('pyvmm.host.start', 'pyvmm.machine.machine', 'cffi')])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, timeout=120
    )

    assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stderr == ""


def test_list_shows_lengths_in_every_unit_and_the_sets() -> None:
    shown = [*sve_list.lines(probe(frozenset({128, 256})))]

    assert shown == [
        "host      Blade 7",
        "kernel    Linux 6.12.0",
        "CPU       Arm, part 0xd4f, MIDR_EL1 0x410fd4f0",
        "programs  128,256: the same as guests, by prctl(PR_SVE_SET_VL) and RDVL",
        "",
        "  BITS  BYTES  QUADWORDS   SET UP TO THIS LENGTH",
        "   128     16          1   --sve-vls=128",
        "   256     32          2   --sve-vls=128,256",
    ]


def test_list_reports_a_host_without_sve() -> None:
    (sve,) = [*sve_list.lines(probe(vl.NO_SVE))][3:]

    assert sve == "SVE       none, neither for guests nor for the host's own programs"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Probe], None]:
    """Make a command find such a host."""

    def install(found: Probe) -> None:
        monkeypatch.setattr(sve_list, "run_here_or_forward", lambda where, files: None)
        monkeypatch.setattr(sve_list, "probe_here", lambda: found)

    return install


def test_list_writes_the_probe_as_json_and_to_a_file(
    answer: Callable[[Probe], None], tmp_path: Path, capsys: Capture
) -> None:
    answer(probe(FULL_512))
    file = tmp_path / "probe.json"

    code = cli.main(["sve", "list", "--json", "--probe", str(file)])
    out, err = capsys.readouterr()

    assert code == 0
    assert Probe.of(json.loads(out), "a") == Probe.read(file) == probe(FULL_512)
    assert json.loads(out)["sets"][1] == [128, 256]
    assert json.loads(out)["agrees"] is True
    assert err == f"{file}: saved\n"


def test_kvm_with_fewer_lengths_than_programs_is_explained_and_exits_with_0(
    answer: Callable[[Probe], None], capsys: Capture
) -> None:
    answer(replace(probe(FULL_512), vls=frozenset({128, 256})))

    code = cli.main(["sve", "list"])
    shown = capsys.readouterr().out

    assert code == 0
    assert "programs  128,256,384,512, by prctl(PR_SVE_SET_VL)" in shown
    assert "only some of the CPUs have" in shown
    assert "WRONG" not in shown


def test_contradicting_lengths_exit_with_1(
    answer: Callable[[Probe], None], capsys: Capture
) -> None:
    answer(replace(probe(FULL_512), rdvl=frozenset({128})))

    code = cli.main(["sve", "list"])

    assert code == 1
    assert "WRONG     RDVL reads 128" in capsys.readouterr().out


def test_file_that_the_emulated_host_cannot_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(host, "is_local", lambda where: False)

    code = cli.main(["sve", "list", "--probe", "/etc/probe.json"])

    assert code == 3
    assert "/etc/probe.json" in capsys.readouterr().err


def test_list_runs_where_the_options_say(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    asked: list[tuple[HostSettings, list[str]]] = []

    def forward(settings: HostSettings, argv: list[str], *_: object) -> int:
        asked.append((settings, argv))
        return 0

    monkeypatch.setattr(host, "is_local", lambda where: False)
    monkeypatch.setattr(host, "forward", forward)

    cli.main(["sve", "list", "--host-cpu", "max,sve=off"])

    ((settings, argv),) = asked
    assert settings.cpu == "max,sve=off"
    assert argv == ["pyvmm", "sve", "list", "--host-cpu", "max,sve=off"]


def test_each_kind_of_cpu_is_shown_once(tmp_path: Path) -> None:
    for number, midr in enumerate(["0x410fd0c0", "0x410fd0c0", "0x410fd4f0"]):
        place = tmp_path / f"cpu{number}/regs/identification"
        place.mkdir(parents=True)
        (place / "midr_el1").write_text(f"{midr}\n")

    assert [*sve_probe._midrs(tmp_path)] == [0x410F_D0C0, 0x410F_D4F0]


@pytest.mark.kvm
def test_list_and_explain_use_kvms_lengths_of_this_host(capsys: Capture) -> None:
    with System.open() as system:
        vls = sorted(host_vector_lengths(system))

    code, listed = ask(capsys, "list")

    assert code == 0
    assert listed["sve"]["kvm"] == vls
    assert listed["sve"]["prctl"] == listed["sve"]["rdvl"]
    assert listed["agrees"] is True
    midr = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
    assert int(listed["host"]["midr_el1"][0], 16) == int(midr.read_text(), 16)
    for known in listed["sets"]:
        code, judged = ask(capsys, "explain", ",".join(map(str, known)))
        assert (code, judged["works"]) == (0, True)
    if vls:
        code, judged = ask(capsys, "explain", str(max(vls) + 128) if max(vls) < 2048 else "2048")
        assert code == 1
